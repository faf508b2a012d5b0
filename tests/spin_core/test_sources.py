"""Data: every shape is read, every fault is named, and the split is that of the content."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_core.demo_data import check_answer, demo_rows
from spin_core.errors import BadInput
from spin_core.recipe import DataSettings
from spin_core.rows import read_rows, row_id
from spin_core.sources import BadRow, choose_turn, reformat, split
from spin_core.store import Ref, Store


def pair(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]}


def run(tmp_path: Path, text: str, suffix: str = ".jsonl", **settings: Any) -> Ref:
    file = tmp_path / f"data{suffix}"
    file.write_text(text)
    return reformat(Store(tmp_path / "home"), DataSettings(name=str(file), **({"test_size": 1} | settings)))


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_shapes_give_the_same_rows(tmp_path: Path) -> None:
    shapes = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "input": "", "output": "a"},
    ]
    ids = set()
    for shape in shapes:
        ref = run(tmp_path, lines(shape, pair(1)))
        ids.add(frozenset(r["row_id"] for split in ("train", "test") for r in read_rows(ref.path / f"{split}.parquet")))
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": "q"}]}, "no answer"),
        ({"prompt": "q"}, "no answer"),
        ({"prompt": "q", "response": "  "}, "answer is empty"),
        ({"messages": [{"role": "user", "content": "q"}] * 2 + pair(0)["messages"]}, "role order"),
        ({"text": "q"}, "shape is not known: keys text"),
        ({"prompt": "q", "response": "\ud800"}, "surrogate"),
        ([1], "not an object"),
    ],
)
def test_bad_rows_are_named_or_listed(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(BadInput, match=f"row 2: .*{reason}") as caught:
        run(tmp_path, lines(pair(1), row, pair(2)))
    assert "on_bad_row=skip" in str(caught.value)
    ref = run(tmp_path, lines(pair(1), row, pair(2)), on_bad_row="skip")
    assert [(r["row_number"], reason in r["reason"]) for r in read_rows(ref.path / "rejected.parquet")] == [(2, True)]


@pytest.mark.parametrize(("suffix", "cut"), [(".json", 7), (".json", 1), (".jsonl", 7)])
def test_a_truncated_file_is_said_so(tmp_path: Path, suffix: str, cut: int) -> None:
    rows = [pair(i) for i in range(5)]
    text = (json.dumps(rows) if suffix == ".json" else lines(*rows))[:-cut]
    with pytest.raises(BadInput, match=r"is cut off after \d whole rows; set data\.on_truncated=keep"):
        run(tmp_path, text, suffix)
    facts = run(tmp_path, text, suffix, on_truncated="keep").facts
    assert facts["truncated"]
    assert facts["train"] + facts["test"] == (5 if cut == 1 else 4)


def test_nothing_is_written_for_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        run(tmp_path, lines(pair(1), {"prompt": "q"}))
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()]


def test_duplicates_are_listed_and_contexts_stay_on_one_side(tmp_path: Path) -> None:
    """A held-out prompt with a second answer in train would make the held-out numbers a lie."""
    other = {"prompt": "q0", "response": "another"}
    ref = run(tmp_path, lines(pair(0), pair(0), other, *map(pair, range(1, 20))), test_size=10)
    contexts = {s: {row_id(r["real"][:-1]) for r in read_rows(ref.path / f"{s}.parquet")} for s in ("train", "test")}
    assert not contexts["train"] & contexts["test"]
    assert [r["reason"] for r in read_rows(ref.path / "rejected.parquet")] == ["duplicate of an earlier row"]


@given(st.permutations(range(12)))
def test_the_split_does_not_depend_on_the_order(order: list[int]) -> None:
    rows = [{"row_id": row_id(pair(i)["messages"]), "real": pair(i)["messages"]} for i in order]
    settings = DataSettings(name="x", test_size=4, subset=9)
    train, test = split(rows, settings)
    again = split(sorted(rows, key=lambda r: r["row_id"]), settings)
    assert (train, test) == again
    assert (len(train), len(test)) == (5, 4)


def test_turns() -> None:
    system = {"role": "system", "content": "s"}
    talk = [system, {"role": "assistant", "content": "hello"}, *pair(1)["messages"], *pair(2)["messages"]]
    assert choose_turn(talk, "first") == [system, *pair(1)["messages"]]
    assert choose_turn(talk, "last") == [system, *pair(1)["messages"], *pair(2)["messages"]]
    with pytest.raises(BadRow):
        choose_turn([system], "first")


def test_demo_rows_are_unique_and_their_answers_pass() -> None:
    rows = demo_rows(400)
    assert len({r["messages"][0]["content"] for r in rows}) == 400
    assert all(check_answer(r["check"], r["messages"][1]["content"]) for r in rows)
    assert rows == demo_rows(400)
    assert not check_answer({"kind": "exact", "value": "42"}, "The answer is 42.")
    assert check_answer({"kind": "exact", "value": "River"}, ' "river". ')


def test_one_context_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none is left to train on"):
        run(tmp_path, lines(*({"prompt": "q", "response": answer} for answer in "abc")))


def test_deep_nesting_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nested too deeply"):
        run(tmp_path, "[" * 200_000, ".json")


def test_demo_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"lower data\.subset"):
        reformat(Store(tmp_path), DataSettings(name="demo", subset=100_000))


def test_facts_count_duplicates(tmp_path: Path) -> None:
    facts = run(tmp_path, lines(pair(0), pair(0), pair(1))).facts
    assert (facts["rows"], facts["duplicates"], facts["train"] + facts["test"]) == (3, 1, 2)
