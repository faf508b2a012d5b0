"""Shapes and turns: what a row says in any of the known ways is one conversation."""

from typing import Any

import pytest

from spin_core.sources.shapes import to_talk
from spin_core.sources.talk import BadRow, Talk, choose_turns

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, TALK[1]]},
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
        {"messages": TALK, "prompt": "q", "prompt_id": "0"},  # ultrachat_200k
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": TALK[:1], "completion": TALK[1:]},
        {"query": "q", "response": "a"},  # MetaMathQA, the official scripts' other data set
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "output": "a"},
        {"real": TALK, "generated": [TALK[0], {"role": "assistant", "content": "b"}]},
    ],
)
def test_shapes_are_recognised(row: dict[str, Any]) -> None:
    assert to_talk(row).messages == TALK


def test_the_shape_can_be_said() -> None:
    """Where columns of two shapes are there, the recipe decides."""
    row = {"messages": TALK, "instruction": "i", "input": "j", "output": "o"}
    assert to_talk(row, "alpaca").messages == [{"role": "user", "content": "i\n\nj"}, {"role": "assistant", "content": "o"}]
    with pytest.raises(BadRow, match="no column real"):
        to_talk(row, "spin-pairs")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": None}, "no answer: messages is empty"),
        ({"messages": "hello"}, "not JSON"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 1 has role 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "turn 1 has content that is no text: a part of type 'image'"),
        ({"messages": [{"role": "user", "content": 5}]}, "turn 1 has int content"),
        ({"messages": [TALK[0], {"role": "assistant", "content": None}]}, "turn 2 has no content"),
        ({"messages": [TALK[0], {"role": "assistant", "content": float("nan")}]}, "turn 2 has no content"),
        ({"prompt": None, "response": "a"}, "the prompt is empty: prompt"),
        ({"prompt": "q", "response": 1.5}, "column response holds float, no text"),
        ({"prompt": "q", "response": "a", "answer": "b"}, r"column 'answer' not understood \(data.ignore_columns=\[answer\]"),
        ({"prompt": "p", "question": "q", "response": "a"}, "column 'question' not understood"),
        ("text", "not an object"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        to_talk(row)


def talk(*answers: str) -> list[Any]:
    return [turn for i, a in enumerate(answers) for turn in ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": a})]


def chosen(messages: list[Any], turns: str) -> list[Any]:
    return list(choose_turns(Talk(messages, [i for i, m in enumerate(messages) if m["role"] == "assistant"]), turns))


def test_turns() -> None:
    system, greeting = {"role": "system", "content": "s"}, {"role": "assistant", "content": "hello"}
    messages: Any = [system, greeting, *talk("a", "b")]
    assert chosen(messages, "first") == [[system, *talk("a")]]
    assert chosen(messages, "last") == [[system, *talk("a", "b")]]
    assert chosen(messages, "each") == [[system, *talk("a")], [system, *talk("a", "b")]]
    assert [str(row) for row in chosen([system], "each")] == ["no answer: there is no assistant turn after a user turn"]


def test_one_bad_turn_does_not_cost_the_others() -> None:
    found = chosen(talk("a", " ", "c"), "each")
    assert [str(row) if isinstance(row, BadRow) else len(row) for row in found] == [2, "the answer is empty", 6]
    broken: Any = [*talk("a"), {"role": "assistant", "content": "again"}, *talk("b")]
    assert [isinstance(row, BadRow) for row in chosen(broken, "each")] == [False, True]
