"""Rows of any known shape to a conversation, and what becomes of every other column (docs/data.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from spin_core.sources.columns import (
    ANSWERS,
    CONTEXTS,
    CONVERSATION,
    CONVERSATIONS,
    MARKS,
    OTHER_SIDE,
    QUESTIONS,
    RENDERINGS,
    SYSTEMS,
    absent,
    dispensable,
    harmless,
    learned,
    not_understood,
    shown,
)
from spin_core.sources.talk import BadRow, Talk, is_turn, read_turns, role_of, split_rounds

_SHAPES = "messages; conversations (ShareGPT); instruction + output (Alpaca); prompt + response; real + generated (SPIN pairs)"
_Row = dict[str, Any]  # the columns that say something; a reader takes out those that it places


def to_talk(raw: Any, shape: str = "auto", ignored: Iterable[str] = ()) -> Talk:
    """The conversation of a raw row. `shape` is `auto` or a name of `_READERS`; `ignored` columns and fields count as absent.

    Raises BadRow for a row that is no conversation, or that holds a column or a field which could change what is learned
    and is not understood.
    """
    if isinstance(raw, BadRow):
        raise raw
    if isinstance(raw, list) and raw and all(map(is_turn, raw)):  # a conversation without a name
        raw = {"messages": raw}
    if not isinstance(raw, Mapping):
        raise BadRow("not an object")
    ignored = frozenset(ignored)
    row = {name: value for name, value in raw.items() if name not in ignored and not absent(value)}
    name = _recognise(row) if shape == "auto" else shape
    if name is None:
        raise BadRow(_why_no_shape([column for column in raw if column not in ignored], row))
    turns = _with_system(row, _READERS[name](row))
    if shape != "auto":  # the recipe says which columns are the conversation
        row = {column: value for column, value in row.items() if column not in CONVERSATION or column in _OWN[shape]}
    talk, unknown = read_turns(turns, ignored)
    unknown += [(column, "column {name}") for column, value in row.items() if not _accounted(column, value, talk, ignored)]
    if unknown:
        raise BadRow(not_understood(unknown))
    return talk


def shape_of(raw: Any) -> str:
    """The `data.format` that a raw row is recognised as; empty where it is none."""
    if isinstance(raw, list):
        return "messages" if raw and all(map(is_turn, raw)) else ""
    if not isinstance(raw, Mapping):
        return ""
    return _recognise({name: value for name, value in raw.items() if not absent(value)}) or ""


def _recognise(row: _Row) -> str | None:
    if "messages" in row:
        return "messages"
    if any(name in row for name in CONVERSATIONS):
        return "sharegpt"
    if "real" in row:
        return "spin-pairs"
    if "instruction" in row:
        return "alpaca"
    if any(name in row for name in QUESTIONS):
        return "prompt-response"
    if "input" in row and any(name in row for name in ANSWERS):
        return "alpaca"
    return "spin-pairs" if "chosen" in row else None


def _why_no_shape(columns: list[Any], row: _Row) -> str:
    empty = [name for name in (*CONVERSATIONS, "real", "instruction", *QUESTIONS) if name in columns and name not in row]
    if empty and empty[0] in ("instruction", *QUESTIONS):
        return f"the prompt is empty: {', '.join(empty)}"
    if empty:
        return f"no answer: {empty[0]} is empty"
    return f"its shape is not known: keys {shown(', '.join(sorted(map(str, columns))))}; known: {_SHAPES}"


def _conversation(*names: str) -> Callable[[_Row], list[Any]]:
    def read(row: _Row) -> list[Any]:
        found = next((name for name in names if name in row), None)
        if found is None:
            raise BadRow(f"no column {names[0]}")
        turns = _turns(row.pop(found))
        if "chosen" in row and turns and role_of(turns[-1]) == "user":  # LLaMA-Factory: the wanted answer stands beside
            turns = turns + _answer_turns("chosen", row.pop("chosen"))
        return turns

    return read


def _pairs(row: _Row) -> list[Any]:
    if "real" not in row and "chosen" in row:
        row["real"] = row.pop("chosen")
    return _conversation("real")(row)


def _asked(*names: str) -> Callable[[_Row], list[Any]]:
    """A question of one of the columns `names`, contexts and history where they are, and an answer."""

    def read(row: _Row) -> list[Any]:
        found = next((name for name in ANSWERS if name in row), "chosen")
        if found not in row:
            raise BadRow("no answer: none of response, completion, output, answer is there")
        answer = _answer_turns(found, row.pop(found))
        if role_of(answer[0]) != "assistant":  # the whole conversation; the question beside it must be in it
            return answer
        name = next((name for name in names if name in row), "")
        if isinstance(row.get(name), list):
            return _history(row) + _turns(row.pop(name)) + answer
        texts = _texts(row.pop(name), name) if name else []
        for context in CONTEXTS:
            if context in row and _is_text(row[context]):
                texts += _texts(row.pop(context), context)
        if not texts:
            raise BadRow("the prompt is empty")
        return [*_history(row), {"role": "user", "content": "\n\n".join(texts)}, *answer]

    return read


_READERS: dict[str, Callable[[_Row], list[Any]]] = {
    "messages": _conversation("messages"),
    "sharegpt": _conversation("conversations", "conversation"),
    "spin-pairs": _pairs,
    "alpaca": _asked("instruction"),
    "prompt-response": _asked(*QUESTIONS),
}
_OWN: dict[str, frozenset[str]] = {
    "messages": frozenset(("messages",)),
    "sharegpt": frozenset(("conversations", "conversation")),
    "spin-pairs": frozenset(("real", "chosen")),
    "alpaca": frozenset(("instruction", "input", *ANSWERS)),
    "prompt-response": frozenset((*QUESTIONS, "input", *ANSWERS)),
}


def _turns(value: Any) -> list[Any]:
    if isinstance(value, str):  # a CSV cell
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow("its turns are text that is not JSON") from None
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise BadRow("its turns are not a list of objects")
    return split_rounds(value)


def _is_text(value: Any) -> bool:
    whole = isinstance(value, str | int) and not isinstance(value, bool)
    return whole or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def _texts(value: Any, name: str) -> list[str]:
    if not _is_text(value):
        raise BadRow(f"column {name} holds {type(value).__name__}, no text")
    return value if isinstance(value, list) else [str(value)]


def _answer_turns(name: str, value: Any) -> list[Any]:
    """The turns of an answer: a text, a turn, turns, or a list of texts that all say the same (SQuAD's `answers` too)."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    if is_turn(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        if len(set(value)) > 1:
            raise BadRow(f"column {name} holds {len(set(value))} different answers")
        value = value[0]
    if isinstance(value, list):
        return _turns(value)
    return [{"role": "assistant", "content": "".join(_texts(value, name))}]


def _history(row: _Row) -> list[Any]:
    """Earlier rounds of LLaMA-Factory and ms-swift: [[question, answer], …]; turns are taken, too."""
    if "history" not in row:
        return []
    rounds = row.pop("history")
    if isinstance(rounds, str):
        rounds = _turns(rounds) if rounds.lstrip().startswith("[{") else _json(rounds)
    if not isinstance(rounds, list):
        raise BadRow("its history is not a list of rounds")
    if all(map(is_turn, rounds)):
        return rounds
    if not all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in rounds):
        raise BadRow("its history is not a list of [question, answer]")
    return [{"role": role, "content": text} for entry in rounds for role, text in zip(("user", "assistant"), entry, strict=True)]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow("its history is text that is not JSON") from None


def _with_system(row: _Row, turns: list[Any]) -> list[Any]:
    """The turns behind the system prompt of a column; where the turns begin with one, it must be the same."""
    found = [name for name in SYSTEMS if name in row and isinstance(row[name], str)]
    if not found:
        return turns
    texts = {row.pop(name).strip(): name for name in found}
    if len(texts) > 1:
        raise BadRow(f"two system prompts: columns {' and '.join(texts.values())} differ")
    ((text, name),) = texts.items()
    if not turns or role_of(turns[0]) != "system" or absent(turns[0].get("content", turns[0].get("value"))):
        return [{"role": "system", "content": text}, *turns]
    said = turns[0].get("content", turns[0].get("value"))
    if not isinstance(said, str) or said.strip() != text:
        raise BadRow(f"two system prompts: column {name} and the first turn differ")
    return turns


def _accounted(name: str, value: Any, talk: Talk, ignored: frozenset[str]) -> bool:
    """Whether a column that no reader placed may stay out. Raises BadRow where it says that the row must."""
    if name == "check" or name in OTHER_SIDE:
        return True
    if name in MARKS:
        said = learned(name, value)
        if said is False:
            raise BadRow(f"{name} {shown(value)} says that it must not be learned")
        return said is True
    if name in CONVERSATION or name in RENDERINGS or name in CONTEXTS:
        return _is_said(name, value, talk, ignored)
    if name in SYSTEMS or name == "history":
        return False
    return harmless(name) or dispensable(value)


def _is_said(name: str, value: Any, talk: Talk, ignored: frozenset[str]) -> bool:
    """Whether the conversation already says what a column says: UltraChat's `prompt` beside `messages`, a passage in its prompt."""
    contents = [message["content"].strip() for message in talk.messages]
    if isinstance(value, str):
        text = value.strip()
        if text in contents or (name in CONTEXTS and any(text in content for content in contents)):
            return True
        return name in RENDERINGS and all(content in text for content in contents)
    if name in CONTEXTS:
        return _is_text(value) and all(any(text.strip() in content for content in contents) for text in _texts(value, name))
    try:
        messages = read_turns(_turns(value), ignored)[0].messages
    except BadRow:
        return False
    places = range(len(talk.messages) - len(messages) + 1)
    return any(talk.messages[place : place + len(messages)] == messages for place in places)
