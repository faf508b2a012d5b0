"""Turns of every known spelling to messages, their marks, and the choice of the scored turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spin_core.contracts.rows import Message
from spin_core.sources.columns import MARKS, absent, dispensable, harmless, learned, shown

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model"), "assistant"),
}
_PLAIN = ("role", "content", "from", "value")
_TEXT_PARTS = frozenset(("text", "input_text", "output_text"))
# a round holds both sides of a turn: ms-swift's and XTuner's `conversation`, Capybara
_ROUND_ASKS = ("human", "user", "input", "query", "prompt")
_ROUND_ANSWERS = ("assistant", "gpt", "bot", "output", "response")


class BadRow(ValueError):
    """A row that cannot be used, with the reason."""


@dataclass(frozen=True)
class Talk:
    """A conversation; of its assistant turns, `answers` are the places of those that may be learned."""

    messages: list[Message]
    answers: list[int]


def role_of(turn: Mapping[str, Any]) -> str | None:
    """system, user or assistant; None for any other role, or none."""
    name = turn.get("role")
    return _ROLES.get(str(turn.get("from") if name is None else name).strip().lower())


def is_turn(value: Any) -> bool:
    """Whether a value looks like one turn of a conversation."""
    return isinstance(value, Mapping) and ("role" in value or "from" in value) and ("content" in value or "value" in value)


def read_turns(turns: list[Any], ignored: frozenset[str]) -> tuple[Talk, list[tuple[str, str]]]:
    """The conversation, and (field, where) of what its turns hold beside it and is not understood.

    Raises BadRow for a turn that is no message, unless something is not understood: that is the better reason.
    """
    messages: list[Message] = []
    answers: list[int] = []
    unknown: list[tuple[str, str]] = []
    problem = ""
    for number, turn in enumerate(turns, 1):
        plain = _usual(turn)
        if plain is not None:
            if plain["role"] == "assistant":
                answers.append(len(messages))
            messages.append(plain)
            continue
        key = "content" if _says(turn.get("content")) or "value" not in turn else "value"
        role, text = role_of(turn), _text(turn.get(key))
        may_learn = True
        if len(turn) > 2:
            extra = [name for name in turn if name != key and name not in ignored and not absent(turn[name])]
            for name in extra:
                if name in MARKS:
                    said = learned(name, turn[name]) if role == "assistant" else True
                    may_learn = may_learn and said is not False
                    if said is not None:
                        continue
                elif (name in _PLAIN and _repeats(turn, name, key)) or harmless(name) or (name not in _PLAIN and dispensable(turn[name])):
                    continue
                unknown.append((name, f"field {{name}} of turn {number}"))
        if role is None or isinstance(text, BadRow):
            problem = problem or (
                f"turn {number} {text}" if role else f"turn {number} has role {shown(turn.get('role', turn.get('from')))!r}"
            )
            continue
        if text is None:
            if role != "system":  # a system prompt that is null is none
                problem = problem or f"turn {number} has no content"
            continue
        if role == "assistant" and may_learn:
            answers.append(len(messages))
        messages.append({"role": role, "content": text})
    if problem and not unknown:
        raise BadRow(problem)
    return Talk(messages, answers), unknown


def _usual(turn: Mapping[str, Any]) -> Message | None:
    """A turn of the usual spellings with nothing beside role and text: most turns, so this is quick."""
    if len(turn) != 2:
        return None
    name, text = (turn["role"], turn.get("content")) if "role" in turn else (turn.get("from"), turn.get("value"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None or not isinstance(text, str) or not (text.isascii() or not_utf8(text) is None):
        return None
    return {"role": role, "content": text}


def _says(value: Any) -> bool:
    return value is not None and value == value


def _repeats(turn: Mapping[str, Any], name: str, key: str) -> bool:
    """Whether a second spelling of role or content (`from` beside `role`) says what the first does."""
    if name in ("role", "from"):
        return _ROLES.get(str(turn[name]).strip().lower()) == role_of(turn)
    return bool(turn[name] == turn.get(key))


def _text(content: Any) -> str | BadRow | None:
    """The text of a turn's content; None where it says nothing, a BadRow where it is no text."""
    if isinstance(content, list):  # OpenAI's content parts
        texts = [_part(part) for part in content]
        wrong = [text for text in texts if isinstance(text, BadRow)]
        content = wrong[0] if wrong else "".join(str(text) for text in texts)
    if isinstance(content, str):
        return not_utf8(content) or content
    if isinstance(content, BadRow) or not _says(content):
        return content if isinstance(content, BadRow) else None
    return BadRow(f"has {type(content).__name__} content")


def _part(part: Any) -> str | BadRow:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
        more = [name for name, value in part.items() if name not in ("type", "text") and not absent(value)]
        return BadRow(f"has a text part with {shown(more[0])!r}") if more else str(part["text"])
    return BadRow(
        f"has content that is no text: a part of type {shown(part.get('type') if isinstance(part, Mapping) else type(part).__name__)!r}"
    )


def not_utf8(text: str) -> BadRow | None:
    """The reason that a text cannot be written as UTF-8: a byte of another encoding (kept as a surrogate), or half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return BadRow(f"is not valid UTF-8 {foreign_byte(code - 0xDC00)}")
        return BadRow("is not valid UTF-8 text (a lone surrogate)")
    return None


def foreign_byte(byte: int) -> str:
    """What a byte that is no UTF-8 may be, and what to do."""
    letter = bytes([byte]).decode("cp1252", "replace")
    guess = f", {letter!r} in Windows-1252" if letter != "\ufffd" else ""
    return f"(byte 0x{byte:02x}{guess}: convert the file to UTF-8)"


def split_rounds(turns: list[Any]) -> list[Any]:
    """Rounds (`{"human": …, "assistant": …}`) as two turns each; turns as they are."""
    if not turns or "role" in turns[0] or "from" in turns[0]:
        return turns
    found: list[Any] = []
    for turn in turns:
        ask = next((name for name in _ROUND_ASKS if name in turn), None)
        answer = next((name for name in _ROUND_ANSWERS if name in turn), None)
        if ask is None or answer is None:
            return turns
        rest = {name: value for name, value in turn.items() if name not in (ask, answer, "system")}
        if not absent(turn.get("system")):
            found.append({"role": "system", "content": turn["system"]})
        found += [{"role": "user", "content": turn[ask]}, {**rest, "role": "assistant", "content": turn[answer]}]
    return found


def choose_turns(talk: Talk, turns: str) -> Iterator[list[Message] | BadRow]:
    """The conversation up to and with each scored assistant turn; everything before it is the context.

    `first` and `last` give one, of the turns that may be learned; `each` gives one a turn, and a BadRow for a turn that
    cannot be scored.
    """
    messages = talk.messages
    start = 1 if messages and messages[0]["role"] == "system" else 0
    system = messages[:start]
    while start < len(messages) and messages[start]["role"] == "assistant":  # a greeting, or the tail of a conversation that was split
        start += 1
    if all(m["role"] != "assistant" for m in messages[start:]):
        yield BadRow("no answer: there is no assistant turn after a user turn")
        return
    ends = [end for end in talk.answers if end >= start]
    if not ends:
        yield BadRow("no answer may be learned: every assistant turn is marked so (weight 0, train false, loss false)")
    for end in {"first": ends[:1], "last": ends[-1:], "each": ends}[turns]:
        chosen = messages[start : end + 1]
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
