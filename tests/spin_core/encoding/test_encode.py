"""The stage: every row is rendered, what cannot be used is listed under its number in the source, and ends.json is there."""

import json
from pathlib import Path
from typing import Any

import pytest

from spin_core.contracts.tables import read_rows
from spin_core.encoding.ends import Ends, ended_N, folder_eos, read_ends, without_end
from spin_core.encoding.job import _work
from spin_core.encoding.stage import Encode
from spin_core.players.stage import Import
from spin_core.recipe import ModelSettings, Recipe
from spin_core.runtime.errors import BadInput, Corrupt
from spin_core.sources.stage import Prompts
from spin_core.store import Store
from tests.spin_core.encoding.templates import GEMMA, PHI3, QWEN3, Family
from tests.stages import import_model, reformat


def rows(count: int = 40, **changed: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Conversations; `changed` gives row number → messages."""
    found = [turns(f"What comes after {i}?", f"It is {i + 1}.") for i in range(count)]
    for number, messages in changed.items():
        found[int(number.removeprefix("row_")) - 1] = messages
    return [{"messages": messages} for messages in found]


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


BRIEF = {"role": "system", "content": "Be brief."}
BAD = {
    "row_8": [BRIEF, *turns("What is this?", "A bad row.")],
    "row_20": turns("What ends a turn?", "It is <end_of_turn>."),
    "row_31": turns("x" * 90, "Long."),
}


def encoded(folder: Path, family: Family, data: list[dict[str, Any]], **settings: Any) -> tuple[Path, dict[str, Any]]:
    """Runs the child on the prompts of `data`; returns its folder and its facts."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    recipe = Recipe.model_validate(
        {"name": "t", "model": {"name": "m"}, "data": {"name": str(folder / "data.jsonl"), "test_size": 4, "on_bad_row": "skip"}}
    )
    prompts = reformat(Store(folder / "home"), recipe.data)
    job = {"model": str(family.write(folder / "model")), "prompts": str(prompts.path), "out": str(folder / "out")}
    job |= {"max_prompt_tokens": 100, "max_new_tokens": 64, "on_bad_row": "skip", "chat_template_kwargs": {}} | settings
    Path(job["out"]).mkdir()
    _work(job)
    return folder / "out", json.loads((folder / "out" / "facts.json").read_text())


def test_bad_rows_are_listed_by_their_number_and_the_others_go_on(tmp_path: Path) -> None:
    out, facts = encoded(tmp_path, GEMMA, rows(**BAD))
    left_out = {row["row_number"]: row["reason"] for row in read_rows(out / "left_out.parquet")}
    assert set(left_out) == {8, 20, 31}
    assert "the chat template refuses it: the system role is not known here; put the system text into the first question" in left_out[8]
    assert "turn 2 (assistant) has the control token <end_of_turn>" in left_out[20]
    assert "its prompt has 106 tokens, over data.max_prompt_tokens=100" in left_out[31]
    assert facts["train"] + facts["test"] == 37
    assert "1 that the chat template refuses" in facts["message"]
    assert read_ends(out) == Ends([2, 4], ["<eos>", "<end_of_turn>"], 4)


def test_bad_rows_stop_the_run_where_the_recipe_says_so(tmp_path: Path) -> None:
    says = (
        r"^1 rows cannot be used: 1 that the chat template refuses; first row 8: the chat template refuses it: the system role is not "
        r"known here; put the system text into the first question, or set model.chat_template, or set data.on_bad_row=skip$"
    )
    with pytest.raises(BadInput, match=says):
        encoded(tmp_path, GEMMA, rows(row_8=BAD["row_8"]), on_bad_row="error")


def test_no_row_at_all_names_the_first(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^no train row can be used: 36 that the chat template refuses; first row \d+: .*; put the system"):
        encoded(tmp_path, GEMMA, [{"messages": [BRIEF, *row["messages"]]} for row in rows()])


def test_a_beginning_that_sampled_answers_lack_is_told(tmp_path: Path) -> None:
    _, facts = encoded(tmp_path, QWEN3, rows())
    (warning,) = facts["warnings"]
    assert warning.startswith(r"the chat template begins 40 human answers with '<think>\n\n</think>\n\n', which no sampled")
    assert "set model.chat_template_kwargs (enable_thinking: false)" in warning
    assert facts["message"] == ""


def test_the_recipes_template_is_the_models_from_then_on(tmp_path: Path, tiny_model: Path) -> None:
    """It is part of the identity, by its content, and every model that is trained from this one carries it."""
    ours = PHI3.template.replace("<|end|>", "<|im_end|>")
    (tmp_path / "ours.jinja").write_text(ours)
    store = Store(tmp_path / "home")
    found = {
        name: import_model(store, ModelSettings(name=str(tiny_model), chat_template=template))
        for name, template in (("own", None), ("file", str(tmp_path / "ours.jinja")), ("text", ours))
    }
    assert found["file"] == found["text"]
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(found["text"].path).chat_template == ours
    assert AutoTokenizer.from_pretrained(found["own"].path).chat_template != ours


def test_what_the_template_is_given_is_in_the_identity(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    store = Store(tmp_path / "home")
    settings = {"name": "t", "model": {"name": str(tiny_model)}, "data": {"name": str(tmp_path / "data.jsonl"), "test_size": 4}}
    recipe = Recipe.model_validate(settings)
    other = Recipe.model_validate(settings | {"model": {"name": str(tiny_model), "chat_template_kwargs": {"enable_thinking": False}}})
    model, prompts = Import(recipe.model, store.home), store.ref(Prompts(recipe.data, store.home).spec())
    assert Import(other.model, store.home).spec() == model.spec()
    first, second = (Encode.of(r, store.ref(model.spec()), prompts).spec() for r in (recipe, other))
    assert first.digest != second.digest
    assert "model" not in first.params, "a key at its default names nothing"


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [({"tokenize": True}, "tokenize is set by the renderer itself"), ({"x": float("nan")}, "its values must be text, numbers")],
)
def test_what_a_template_may_not_be_given(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Recipe.model_validate({"name": "t", "model": {"name": "m", "chat_template_kwargs": kwargs}, "data": {"name": "demo"}})


def test_lists_without_their_ends() -> None:
    import pyarrow as pa

    from spin_core.contracts.rows import IDS

    ends = Ends([2, 9], ["a", "b"], 2)
    ids = pa.array([[7], [], [5, 2], [5, 9], [2, 5], [2], []], IDS)[1:]  # a slice shares its parent's buffers
    assert without_end(ids, ends).to_pylist() == [[], [5], [5], [2, 5], [], []]
    assert ended_N(ids, ends).tolist() == [False, True, True, False, True, False]
    assert ends.cut([5, 9, 2]) == [5, 9]
    assert ends.cut([5, 6]) == [5, 6]


def test_an_artifact_without_ends_is_named(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match=r"ends.json cannot be read; remove .* and run again"):
        read_ends(tmp_path)


def test_the_folders_eos_is_that_of_its_generation_config(tmp_path: Path) -> None:
    """It is in the identity of what is encoded: another list stops engines elsewhere."""
    assert folder_eos(tmp_path) == []
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert folder_eos(tmp_path) == [2]
    (tmp_path / "generation_config.json").write_text("{}")
    assert folder_eos(tmp_path) == [2]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 4, 9]}')
    assert folder_eos(tmp_path) == [4, 9]
