"""Chat templates: where their text comes from, how they are called, and what of a row a rendering lost. No transformers here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import Message
from spin_core.runtime.errors import BadInput

# the day that a template which asks for today's date is told (Llama-3.2's own fallback): a prompt must not change overnight
_DAY = date(2024, 7, 26)
_THINKING = re.compile(r"[\W_]*(begin|end)?[\W_]*(of)?[\W_]*(think|thinking|thought|reason|reasoning)[\W_]*", re.IGNORECASE)


def template_text(setting: str) -> str:
    """The template of `model.chat_template`: the setting itself, or the file that it names. Raises BadInput."""
    if "{%" in setting or "{{" in setting:
        return setting
    try:
        return Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadInput(f"model.chat_template: {setting}: {what}", remedy="give a .jinja file, or the template itself") from None


def rendering_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a template is called with: the recipe's `kwargs`, and a clock that stands still.

    Templates that write the date take it from `strftime_now`; the key `strftime_now` of `kwargs` (2026-01-31) sets its day.
    """
    try:
        day = date.fromisoformat(str(kwargs.get("strftime_now", _DAY)))
    except ValueError:
        raise BadInput(
            f"model.chat_template_kwargs.strftime_now: {kwargs['strftime_now']} is no date", remedy="write it as 2026-01-31"
        ) from None
    return {**kwargs, "strftime_now": day.strftime}


def control_pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the tokens in a text, the longest first."""
    texts = sorted({token for token in tokens if token.strip()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def written_control(talk: Sequence[Message], pattern: re.Pattern[str]) -> tuple[int, str] | None:
    """(turn, token) of the first control token that a turn's content spells out, or None.

    The tokenizer would take it for the template's own. Marks of thinking in an answer are meant as tokens.
    """
    for turn, message in enumerate(talk, 1):
        for match in pattern.finditer(message["content"]):
            if message["role"] != "assistant" or not _THINKING.fullmatch(match[0]):
                return turn, match[0]
    return None


def lost_turn(talk: Sequence[Message], rendered: str) -> int | None:
    """The first turn whose content is not in the rendered text, or None; white space may differ.

    Turns are looked for in their order, then anywhere, because some templates move the system turn. Of an earlier answer's
    thinking, which templates leave out by rule, nothing is expected. The answer must come after its context.
    """
    place = 0
    for turn, message in enumerate(talk, 1):
        content = message["content"].strip()
        found = rendered.find(content, place)
        if found >= 0:
            place = found + len(content)
            continue
        last = turn == len(talk)
        where = _squeezed(rendered[place:] if last else rendered)
        if _squeezed(content) in where:
            continue
        if last or message["role"] != "assistant" or _squeezed(content.rpartition("</think>")[2]) not in where:
            return turn
    return None


def _squeezed(text: str) -> str:
    return "".join(text.split())
