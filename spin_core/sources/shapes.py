"""Rows of any known shape to messages, and the choice of the scored turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from spin_core.contracts.rows import Message

_ROLES = {"user": "user", "human": "user", "system": "system", "developer": "system"} | dict.fromkeys(
    ("assistant", "gpt", "chatgpt", "bard", "bing", "model"), "assistant"
)
_ANSWERS = ("response", "completion", "output", "answer")
_QUESTIONS = ("prompt", "query", "question")
KNOWN_COLUMNS = frozenset(
    ("messages", "conversations", "instruction", "input", "real", "generated", "chosen", "rejected", "check", *_ANSWERS, *_QUESTIONS)
)
_SHAPES = "messages; conversations (ShareGPT); instruction + output (Alpaca); prompt + response; real + generated (SPIN pairs)"


class BadRow(ValueError):
    """A row that cannot be used, with the reason."""


def to_messages(raw: Any, shape: str = "auto") -> list[Message]:
    """The conversation of a raw row. `shape` is `auto` or a name of `_READERS`. Raises BadRow."""
    if isinstance(raw, BadRow):
        raise raw
    if not isinstance(raw, Mapping):
        raise BadRow("not an object")
    name = _recognise(raw) if shape == "auto" else shape
    if name is None:
        raise BadRow(f"its shape is not known: keys {', '.join(sorted(map(str, raw)))[:80]}; known: {_SHAPES}")
    return [_checked(turn, number) for number, turn in enumerate(_READERS[name](raw), 1)]


def _recognise(raw: Mapping[str, Any]) -> str | None:
    if "messages" in raw:
        return "messages"
    if "conversations" in raw:
        return "sharegpt"
    if "real" in raw and "generated" in raw:
        return "spin-pairs"
    if "instruction" in raw:
        return "alpaca"
    return "prompt-response" if any(key in raw for key in _QUESTIONS) else None


def _column(name: str) -> Callable[[Mapping[str, Any]], list[Any]]:
    def read(raw: Mapping[str, Any]) -> list[Any]:
        if name not in raw:
            raise BadRow(f"no column {name}")
        return _turns(raw[name])

    return read


def _alpaca(raw: Mapping[str, Any]) -> list[Any]:
    question = "\n\n".join(str(raw[key]) for key in ("instruction", "input") if raw.get(key))
    return [{"role": "user", "content": question}, {"role": "assistant", "content": _answer(raw)}]


def _prompt_response(raw: Mapping[str, Any]) -> list[Any]:
    question = next((raw[key] for key in _QUESTIONS if key in raw), None)
    answer = _answer(raw)
    asked = _turns(question) if isinstance(question, list) else [{"role": "user", "content": question}]
    return asked + (_turns(answer) if isinstance(answer, list) else [{"role": "assistant", "content": answer}])


_READERS: dict[str, Callable[[Mapping[str, Any]], list[Any]]] = {
    "messages": _column("messages"),
    "sharegpt": _column("conversations"),
    "spin-pairs": _column("real"),
    "alpaca": _alpaca,
    "prompt-response": _prompt_response,
}


def _answer(raw: Mapping[str, Any]) -> Any:
    for key in _ANSWERS:
        if raw.get(key) is not None:
            return raw[key]
    raise BadRow("no answer: none of response, completion, output is there")


def _turns(value: Any) -> list[Any]:
    if isinstance(value, str):  # a CSV cell
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRow("its turns are text that is not JSON") from None
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise BadRow("its turns are not a list of objects")
    return value


def _checked(turn: Mapping[str, Any], number: int) -> Message:
    name = turn.get("role", turn.get("from"))
    role, content = _ROLES.get(str(name)), turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)  # OpenAI's content parts
    if role is None or not isinstance(content, str):
        raise BadRow(f"turn {number} has role {name!r} and {type(content).__name__} content")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"turn {number} is not valid UTF-8 text (a lone surrogate or a broken byte)") from None
    return {"role": role, "content": content}


def choose_turns(messages: list[Message], turns: str) -> Iterator[list[Message] | BadRow]:
    """The conversation up to and with each scored assistant turn; everything before it is the context.

    `first` and `last` give one; `each` gives one an assistant turn, and a BadRow for a turn that cannot be scored.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    body = messages[len(system) :]
    while body and body[0]["role"] == "assistant":  # a greeting, or the tail of a conversation that was split
        body = body[1:]
    ends = [i for i, m in enumerate(body) if m["role"] == "assistant"]
    if not ends:
        yield BadRow("no answer: there is no assistant turn after a user turn")
        return
    for end in {"first": ends[:1], "last": ends[-1:], "each": ends}[turns]:
        chosen = body[: end + 1]
        if any(m["role"] != ("user", "assistant")[i % 2] for i, m in enumerate(chosen)):
            yield BadRow("role order is broken: user and assistant must alternate")
            return
        if not chosen[-1]["content"].strip():
            yield BadRow("the answer is empty")
        elif not chosen[-2]["content"].strip():
            yield BadRow("the prompt is empty")
        else:
            yield system + chosen


def root(messages: list[Message]) -> list[Message]:
    """The conversation's beginning, up to its first user turn."""
    return messages[: next(i for i, m in enumerate(messages) if m["role"] == "user") + 1]
