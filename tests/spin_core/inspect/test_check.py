"""`spinflow check` goes to its end whatever it finds, and its end is `ready` or the list of what to mend."""

import importlib
import json
import re
import shutil
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from spin_core.inspect import surroundings
from spin_core.inspect.check import check
from spin_core.inspect.findings import Findings
from spin_core.inspect.surroundings import look_around, look_at_size, require_home
from spin_core.recipe import Recipe
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput, Cancelled
from spin_core.store import Store


def recipe_of(model: Path, file: Path, **groups: dict[str, Any]) -> Recipe:
    written: dict[str, Any] = {
        "name": "c",
        "model": {"name": str(model)},
        "data": {"name": str(file), "test_size": 4, "max_prompt_tokens": 256},
        "generation": {"engine": "transformers", "max_new_tokens": 24},
    }
    return Recipe.model_validate({key: written.get(key, {}) | groups.get(key, {}) if key != "name" else "c" for key in {*written, *groups}})


def write_rows(file: Path, bad: int = 0) -> Path:
    talks = [[{"role": "user", "content": f"After {i}?"}, {"role": "assistant", "content": f"{i + 1}."}] for i in range(20)]
    talks += [[{"role": "user", "content": "nobody answers"}]] * bad
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return file


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process: the same code, without four starts of Python and torch."""

    def run(module: str, job: dict[str, Any], log: Path, **_: Any) -> None:
        found = importlib.import_module(module)
        (found.convert if hasattr(found, "convert") else found._work)(json.loads(json.dumps(job)))

    monkeypatch.setattr(process, "run_job", run)


def look(store: Store, recipe: Recipe) -> tuple[bool, list[str]]:
    out = StringIO()
    ready = check(store, recipe, Console(file=out, width=200))
    return ready, out.getvalue().splitlines()


@pytest.mark.usefixtures("here")
def test_a_good_recipe_is_ready(tiny_model: Path, tmp_path: Path) -> None:
    """Through every stage before sampling, and the model loaded and run."""
    ready, lines = look(Store(tmp_path / "home"), recipe_of(tiny_model, write_rows(tmp_path / "d.jsonl")))
    assert ready, lines
    assert lines[-1] == "ready"
    assert any("step" in line and "packed" in line for line in lines)
    assert any(re.search(r"human answers.* 5\.\d\d nats a token", line) for line in lines)  # ln 259: the model is random


@pytest.mark.usefixtures("here")
def test_all_that_is_wrong_is_told_at_once(tiny_model: Path, tmp_path: Path) -> None:
    """Positions, rows, devices and packages: each has a line of its own, with what, where and remedy."""
    groups: dict[str, dict[str, Any]] = {
        "data": {"max_prompt_tokens": 2000},
        "generation": {"tensor_parallel": 99},
        "training": {"report_to": ["trackio"]},
    }
    found = recipe_of(tiny_model, write_rows(tmp_path / "d.jsonl", bad=2), **groups)
    ready, lines = look(Store(tmp_path / "home"), found)
    assert not ready
    start = next(i for i, line in enumerate(lines) if line.startswith("to mend: "))
    mend = lines[start + 1 :]
    assert [line.split(".")[0] for line in mend] == [str(i) for i in range(1, len(mend) + 1)]
    text = "\n".join(mend)
    assert "trackio is not installed; pip install trackio" in text
    assert "generation.tensor_parallel=99 needs 99 GPUs" in text
    assert "this llama has 1024 positions; lower data.max_prompt_tokens to 1000" in text
    assert re.search(r"data: 2 rows cannot be used: row \d+: .*; row \d+: .*; mend these rows, or set data\.on_bad_row=skip", text)
    assert any("a row as the model sees it" in line for line in lines)  # the rest was looked at all the same


@pytest.mark.usefixtures("here")
def test_a_broken_model_does_not_hide_the_data(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    ready, lines = look(Store(tmp_path / "home"), recipe_of(model, tmp_path / "nowhere.jsonl"))
    assert not ready
    text = "\n".join(lines[lines.index("to mend: 2") :])
    assert "is a pointer of git-lfs" in text
    assert "nowhere.jsonl" in text


def test_findings_are_collected_once_each() -> None:
    found, out = Findings(), StringIO()

    def fail() -> None:
        raise BadInput("a is wrong", remedy="mend a")

    def cancel() -> None:
        raise Cancelled("ended")

    assert found.attempt(lambda: 3) == 3
    assert found.attempt(fail) is None
    assert found.attempt(fail) is None
    found.problem("b is wrong", remedy="mend b")
    with pytest.raises(Cancelled):
        found.attempt(cancel)
    assert not found.show(Console(file=out), "t")
    assert out.getvalue() == "to mend: 2\n1. a is wrong; mend a\n2. b is wrong; mend b\n"


def test_a_home_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(BadInput, match=r"the home .* cannot be used .*--home"):
        require_home(tmp_path / "home")


def around(recipe: Recipe) -> str:
    found = Findings()
    look_around(found, recipe)
    return "\n".join(found.problems)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"lora": {"quantize": "4bit"}}, "training.lora.quantize=4bit: bitsandbytes is not installed"),
        ({"report_to": ["wandb"]}, "training.report_to=wandb: wandb is not installed; pip install wandb"),
        ({"attention": "flash"}, "training.attention=flash: flash_attn is not installed"),
    ],
)
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: dict[str, Any], words: str) -> None:
    monkeypatch.setattr(surroundings, "find_spec", lambda name: None)
    assert words in around(recipe_of(tmp_path, tmp_path, training=group))
    assert "generation.engine=vllm: vllm is not installed" in around(recipe_of(tmp_path, tmp_path, generation={"engine": "vllm"}))


def test_an_endpoint_that_does_not_answer_is_named(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    text = around(recipe_of(tmp_path, tmp_path, generation={"engine": "endpoint", "endpoints": [url]}))
    assert f"generation.endpoints: {url} does not answer" in text


def test_what_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terabyte of weights, optimiser and checkpoints."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    found = Findings()
    look_at_size(found, recipe_of(tmp_path, tmp_path), tmp_path, 10**11)
    assert "has 1.0 GiB free" in found.problems[0]
    assert "training needs about 1117.6 GiB of memory a process" in found.problems[1]


@pytest.mark.parametrize(
    ("training", "models"),
    [
        ({}, 2 * 3),
        ({"line_search": []}, 3),
        ({"line_search": [0.5]}, 2 * 3),
        ({"choose_epoch": True, "epochs": 4, "line_search": []}, 5 * 3),
        ({"choose_epoch": True, "epochs": 4, "stop_after_epochs": 2, "line_search": [0.5]}, 3 * 3),
    ],
)
def test_what_a_choice_keeps_is_counted(tmp_path: Path, training: dict[str, Any], models: int) -> None:
    """Of 2**28 fp32 weights each, a GiB; with θ_0 and a checkpoint of three of them. Three iterations."""
    found = Findings()
    recipe = recipe_of(tmp_path, tmp_path, training=training, data={"validation_size": 2})
    look_at_size(found, recipe, tmp_path, 2**28)
    copies = {"rmsprop": 3}[recipe.training.optimizer]
    assert dict(found.facts)["disk"].startswith(f"about {1 + models + copies:.1f} GiB")
