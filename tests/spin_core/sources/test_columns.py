# ruff: noqa: E501  (a row a line)
"""What becomes of every column: published sets as they are, marks, and no text that goes in silence."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spin_core.sources import columns
from spin_core.sources.columns import harmless
from spin_core.sources.shapes import to_talk
from spin_core.sources.talk import BadRow, choose_turns

NAN = math.nan


def turns(*texts: str) -> list[dict[str, str]]:
    """`s: …` is a system prompt; the others are user and assistant in turn."""
    system = [{"role": "system", "content": text[3:]} for text in texts[:1] if text.startswith("s: ")]
    return system + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts[len(system) :])]


Q, A = turns("q", "a")
CALL = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("row", "talk"),
    [
        # Dolly
        ({"instruction": "q", "context": "c", "response": "a", "category": "closed_qa"}, turns("q\n\nc", "a")),
        ({"instruction": "q", "context": "", "response": "a", "category": "open_qa"}, turns("q", "a")),
        # OpenOrca, and Intel's pairs of it
        ({"id": "niv.1", "system_prompt": "s", "question": "q", "response": "a"}, turns("s: s", "q", "a")),
        ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, turns("s: s", "q", "a")),
        # LLaMA-Factory
        (
            {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["q0", "a0"], ["q1", "a1"]]},
            turns("s: s", "q0", "a0", "q1", "a1", "q\n\ni", "a"),
        ),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s", "tools": "[]"}, turns("s: s", "q", "a")),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}, [Q, A]),
        ({"instruction": "q", "input": "", "output": "a", "kto_tag": True}, [Q, A]),
        # ms-swift
        ({"system": "s", "query": "q", "response": "a", "history": [["q0", "a0"]]}, turns("s: s", "q0", "a0", "q", "a")),
        ({"query": "q", "response": "a", "history": '[["q0", "a0"]]'}, turns("q0", "a0", "q", "a")),
        ({"system": "s", "conversation": [{"human": "q0", "assistant": "a0"}, {"human": "q", "assistant": "a"}]}, turns("s: s", "q0", "a0", "q", "a")),
        ({"messages": [Q, A | {"loss": True}], "rejected_response": "b", "images": [], "tools": None}, [Q, A]),
        # XTuner, Capybara
        ({"conversation": [{"system": "s", "input": "q", "output": "a"}], "source": "x"}, turns("s: s", "q", "a")),
        # axolotl: context_qa, alpaca with a system prompt
        ({"article": "c", "question": "q", "answer": "a"}, turns("q\n\nc", "a")),
        ({"system": "s", "instruction": "q", "input": NAN, "output": "a"}, turns("s: s", "q", "a")),
        # SQuAD
        ({"id": "5", "title": "T", "context": "c", "question": "q", "answers": {"text": ["a", "a"], "answer_start": [1, 1]}}, turns("q\n\nc", "a")),
        # OpenAI
        ({"messages": [{"role": "developer", "content": "s"}, Q | {"name": None}, A | {"weight": 1, "refusal": None, "tool_calls": []}]}, turns("s: s", "q", "a")),
        # UltraChat, tulu, OpenHermes, SlimOrca, WildChat, UltraFeedback, NuminaMath
        ({"prompt": "q", "prompt_id": "f0", "messages": [Q, A]}, [Q, A]),
        ({"id": "x_1", "messages": [Q, A], "source": "ai2/x"}, [Q, A]),
        (
            {
                "conversations": [{"from": "human", "value": "q", "weight": None}, {"from": "gpt", "value": "a", "weight": None}],
                "custom_instruction": False, "system_prompt": None, "title": "T", "topic": "t", "avatarUrl": "u", "views": 3.0, "hash": "h",
                "skip_prompt_formatting": None, "model": "gpt-4", "language": "en", "category": "c", "idx": None, "id": None, "source": "s",
            },
            [Q, A],
        ),
        (
            {"conversations": [{"from": "system", "value": "s", "weight": None}, {"from": "human", "value": "q", "weight": 0.0}, {"from": "gpt", "value": "a", "weight": 1.0}]},
            turns("s: s", "q", "a"),
        ),
        (
            {
                "conversation_hash": "h", "model": "m", "turn": 1, "language": "English", "toxic": False, "country": "X", "hashed_ip": "i",
                "openai_moderation": [{"flagged": False}], "header": {"user-agent": "b"},
                "conversation": [Q | {"country": "X", "turn_identifier": 5, "header": {"user-agent": "b"}}, A | {"timestamp": "t", "toxic": False}],
            },
            [Q, A],
        ),
        ({"prompt": "q", "prompt_id": "f", "chosen": [Q, A], "rejected": [Q, Q], "messages": [Q, A], "score_chosen": 8.0, "score_rejected": 1.0}, [Q, A]),
        ({"prompt": "q", "chosen": [Q, A], "rejected": [Q, Q], "chosen-rating": 5.0}, [Q, A]),
        ({"source": "olympiads", "problem": "q", "solution": "a", "messages": [Q, A]}, [Q, A]),
        # MetaMathQA, gsm8k, Alpaca with its rendering
        ({"type": "GSM_SV", "query": "q", "original_question": "another", "response": "a"}, [Q, A]),
        ({"question": "q", "answer": 42}, turns("q", "42")),
        ({"instruction": "q", "input": "", "output": "a", "text": "### Instruction:\nq\n\n### Response:\na"}, [Q, A]),
        # our own
        ({"messages": [Q, A], "check": {"kind": "exact", "value": "a"}}, [Q, A]),
        ({"real": [Q, A], "generated": [Q, Q], "row_id": "0", "prompt_ids": [1], "real_ids": [2], "generated_ids": [3], "finish_reason": "stop"}, [Q, A]),
        # absence
        ({"messages": None, "prompt": "q", "response": "a", "context": NAN}, [Q, A]),
        ({"prompt": "q", "response": NAN, "output": "a", "embedding": [0.5, 1.0], "context2": None}, [Q, A]),
    ],
)  # fmt: skip
def test_published_rows_are_read_as_they_are(row: dict[str, Any], talk: list[dict[str, str]]) -> None:
    assert to_talk(row).messages == talk


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": [Q, A | {"tool_calls": CALL}]}, "field 'tool_calls' of turn 2"),
        ({"messages": [Q, {"role": "assistant", "content": None, "tool_calls": CALL}]}, "field 'tool_calls' of turn 2"),
        ({"messages": [Q, A | {"function_call": {"name": "f"}}]}, "field 'function_call' of turn 2"),
        ({"messages": [Q, A | {"reasoning_content": "r"}]}, "field 'reasoning_content' of turn 2"),
        ({"messages": [Q | {"name": "Ann"}, A]}, "field 'name' of turn 1"),
        ({"messages": [Q | {"value": "other"}, A]}, "field 'value' of turn 1"),
        ({"messages": [Q | {"from": "gpt"}, A]}, "field 'from' of turn 1"),
        ({"messages": [Q, A | {"weight": 0.5}]}, "field 'weight' of turn 2"),
        ({"messages": [Q, A], "tools": CALL}, "column 'tools'"),
        ({"messages": [Q, A], "functions": '[{"name": "f"}]'}, "column 'functions'"),
        ({"messages": [Q, A], "images": ["a.png"]}, "column 'images'"),
        ({"messages": [Q, A], "context": "unsaid"}, "column 'context'"),
        ({"messages": [Q, A], "prompt": "another"}, "column 'prompt'"),
        ({"messages": [Q, A], "chosen": [Q, Q]}, "column 'chosen'"),
        ({"messages": [Q, A], "history": [["x", "y"]]}, "column 'history'"),
        ({"prompt": "q", "response": "a", "context2": "c"}, "column 'context2'"),
        ({"prompt": "q", "response": "a", "system": ["s"]}, "column 'system'"),
        ({"prompt": "q", "response": "a", "label": "good"}, "column 'label'"),
        ({"prompt": "q", "response": "a", "context": {"title": ["t"]}}, "column 'context'"),
    ],
)
def test_what_is_not_understood_is_named(row: dict[str, Any], name: str) -> None:
    """Dropping it would teach another answer than the one that was meant; the remedy that is named works."""
    with pytest.raises(BadRow, match=f"{name} not understood") as caught:
        to_talk(row)
    column = name.split("'")[1]
    assert f"data.ignore_columns=[{column}]" in str(caught.value)
    if "content': None" not in str(row):
        assert to_talk(row, ignored=[column]).messages[-1]["content"] == "a"


def test_everything_is_named_at_once() -> None:
    row = {"messages": [Q, A | {"tool_calls": CALL, "audio": {"id": "x"}}], "tools": CALL, "x\ud800": "y"}
    with pytest.raises(BadRow, match=r"field 'tool_calls' of turn 2, field 'audio' of turn 2, column 'tools'") as caught:
        to_talk(row)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"system": "s", "messages": turns("s: other", "q", "a")}, "two system prompts: column system and the first turn"),
        ({"system": "s", "system_prompt": "t", "messages": [Q, A]}, "two system prompts: columns system and system_prompt"),
        ({"prompt": "q", "response": ["a", "b"]}, "column response holds 2 different answers"),
        ({"prompt": "q", "response": "a", "label": False}, "label False says that it must not be learned"),
        ({"messages": [Q, A], "weight": 0}, "weight 0 says that it must not be learned"),
        ({"prompt": "q", "response": "a", "history": "hello"}, "history is text that is not JSON"),
        ({"prompt": "q", "response": "a", "history": [["x"]]}, "history is not a list of"),
    ],
)
def test_rows_that_contradict_themselves(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        to_talk(row)


def test_the_same_system_prompt_stands_once() -> None:
    assert to_talk({"system": "s ", "messages": turns("s: s", "q", "a")}).messages == turns("s: s", "q", "a")


MARKS = (
    {"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"train": False}, {"training": False}, {"loss": False}, {"loss": "false"}, {"mask": True},
    {"loss_mask": 0}, {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
)  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("names", [("role", "content"), ("from", "value")])
def test_a_turn_that_is_marked_is_never_the_answer(mark: dict[str, Any], names: tuple[str, str]) -> None:
    messages = turns("q0", "a0", "q1", "a1", "q2", "a2")
    raw = [{names[0]: m["role"], names[1]: m["content"]} | (mark if m["content"] in ("a0", "a2") else {}) for m in messages]
    talk = to_talk({"messages": raw})
    assert talk.messages == messages, "it stays in the context"
    for which in ("first", "last", "each"):
        assert list(choose_turns(talk, which)) == [messages[:4]]
    alone = to_talk({"messages": [Q, A | mark]})
    assert [str(row).partition(":")[0] for row in choose_turns(alone, "last")] == ["no answer may be learned"]  # type: ignore[list-item]
    assert to_talk({"messages": [Q | mark, A]}).answers == [1], "a mark on a question says nothing of the answer"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() not in ("", "[]", "{}", "null")
)
NAMES = st.sampled_from(
    [
        *(
            "system",
            "system_prompt",
            "input",
            "context",
            "passage",
            "history",
            "prompt",
            "question",
            "query",
            "instruction",
            "output",
            "answer",
        ),
        *(
            "response",
            "chosen",
            "text",
            "context2",
            "tools",
            "notes",
            "thinking",
            "id",
            "source",
            "score",
            "conversation_id",
            "label",
            "weight",
        ),
    ]
)
VALUES = TEXT | st.integers() | st.none() | st.just(NAN) | st.lists(TEXT, max_size=2) | st.dictionaries(TEXT, TEXT, max_size=1)
BASES = st.sampled_from(
    (
        {"messages": [Q, A]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "response": "a"},
        {"real": [Q, A], "generated": [Q, Q]},
    )
)


def texts(value: Any) -> list[str]:
    """The texts in a value, however deep; those of a name that are no text of a person are left out by the caller."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for entry in inside for text in texts(entry)]


@given(BASES, st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(NAMES | TEXT, VALUES, max_size=2))
def test_no_text_of_a_row_goes_in_silence(base: dict[str, Any], more: dict[str, Any], fields: dict[str, Any]) -> None:
    """Each text ends in the messages, or its column is on the list of harmless ones, or the row is refused."""
    row = base | more
    column = next((name for name in ("messages", "conversations", "real") if isinstance(row.get(name), list)), None)
    if column:
        row = row | {column: [row[column][0], {**fields, **row[column][1]}]}
    try:
        said = [message["content"] for message in to_talk(row).messages]
    except BadRow:
        return
    kept = {name: value for name, value in row.items() if not harmless(name) and name != "generated"}
    for name, value in kept.items():
        for turn in value if name == column else [{name: value}]:
            for field, inside in turn.items():
                if field in ("role", "from", "weight", "label") or harmless(field):
                    continue
                for text in texts(inside):
                    rendering = name in ("text", "prompt") and all(content.strip() in text for content in said)
                    assert not text.strip() or rendering or any(text.strip() in content for content in said), (name, field)


@given(st.dictionaries(NAMES, VALUES, max_size=5), TEXT)
def test_an_ignored_column_is_as_if_it_were_absent(row: dict[str, Any], name: str) -> None:
    assume(name not in row)

    def read(raw: dict[str, Any], ignored: list[str]) -> Any:
        try:
            return to_talk(raw, ignored=ignored)
        except BadRow as error:
            return str(error)

    assert read(row | {name: "text"}, [name]) == read(row, [])


def test_the_page_lists_what_may_stay_out() -> None:
    """docs/data.md promises a documented list: it and the code say the same."""
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    listed = page.partition("- By name, ")[2].partition("- By form:")[0]
    names = {
        name for word in re.findall(r"`([^`]+)`", listed) for name in ({word[:-3], word[:-3] + "s"} if word.endswith("(s)") else {word})
    }
    assert names == columns._HARMLESS - {""}
    for group in (columns.SYSTEMS, columns.CONTEXTS, columns.ANSWERS, columns.QUESTIONS, columns.MARKS, columns.OTHER_SIDE):
        assert [name for name in group if f"`{name}`" not in page and f"`{name}: " not in page] == []
