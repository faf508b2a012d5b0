"""The columns of a row by name: what is the conversation, what stands beside it, what may be left out.

docs/data.md is the page of these lists for people. A column that is in none of them, and no number, is never left out in
silence: its row is refused unless `data.ignore_columns` names it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

import pyarrow as pa

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("prompt", "query", "question", "problem")
ANSWERS = ("response", "completion", "output", "answer", "solution", "answers")
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction")
CONTEXTS = ("input", "context", "contexts", "passage", "passages", "document", "documents", "article")  # in the order they are joined
RENDERINGS = ("text", "prompt")  # some sets keep the whole conversation, written out, in one of these
OTHER_SIDE = frozenset(("generated", "rejected", "rejected_response", "rejected_messages"))  # answers that nobody is to learn
CONVERSATION = frozenset((*CONVERSATIONS, *QUESTIONS, *ANSWERS, "instruction", "input", "real", "chosen"))
COMPANIONS = frozenset((*SYSTEMS, *CONTEXTS, "history", "text", "check"))

# marks on a turn or a row: false or 0 says that it must not be learned; of _MASKS, true or 1 does
MARKS = frozenset(
    (
        *("weight", "train", "training", "trainable", "is_trainable", "train_on_turn", "learn", "supervised", "train_detail"),
        *("training_detail", "loss", "loss_scale", "loss_weight", "loss_mask", "calculate_loss", "output_with_loss", "label", "kto_tag"),
        *("mask", "masked", "no_train", "no_loss", "ignore_loss"),
    )
)
_MASKS = frozenset(("mask", "masked", "no_train", "no_loss", "ignore_loss"))
_DETAILS = frozenset(("train_detail", "training_detail"))
_SAID = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}

_HARMLESS = frozenset(
    (
        *("", "id", "_id", "ids", "idx", "index", "uuid", "guid", "hash", "md5", "sha256", "row_number"),
        *("source", "sources", "dataset", "dataset_name", "data_source", "origin", "provenance", "split", "subset", "config", "license"),
        *("version", "revision", "url", "urls", "uri", "link", "links", "href", "filename", "file_name", "path", "repo", "domain"),
        *("lang", "language", "languages", "locale", "country", "state", "category", "categories", "subcategory", "type", "types"),
        *("task_type", "task_name", "topic", "topics", "subtopic", "sub_topic", "tags", "tag", "level", "difficulty", "title"),
        *("model", "models", "generator", "annotator", "annotators", "ability", "skill"),
        *("score", "scores", "rating", "ratings", "reward", "rewards", "quality", "toxicity", "toxic", "redacted", "views"),
        *("openai_moderation", "detoxify_moderation", "moderation", "hashed_ip", "header", "metadata", "meta", "extra_info"),
        *("date", "time", "timestamp", "created", "created_at", "updated_at", "create_time", "turn", "turns", "turn_identifier"),
        *("finish_reason", "stop_reason", "iteration", "end_turn", "original_question"),
    )
)
_HARMLESS_FORM = re.compile(
    r".*_(id|ids|idx|index|uuid|hash|url|urls|uri|score|scores|rating|ratings|model|lang|language|source|dataset|date|time|timestamp|license"
    r"|count|length|tokens)|(score|scores|rating|num|n|is|has)_.*|.*[a-z](Id|Url|Hash)|unnamed: \d+|__index_level_\d+__",
    re.DOTALL,
)
_NUMBERS = (int, float, Decimal, datetime.date, datetime.time, datetime.timedelta)  # bool and datetime are kinds of these
_EMPTY_TEXTS = frozenset(("[]", "{}", "null"))


def absent(value: Any) -> bool:
    """Whether a value says nothing: null, NaN, blank text, an empty list or object."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float) and value != value) or (isinstance(value, list | dict) and not value)


@lru_cache(maxsize=4096)
def harmless(name: str) -> bool:
    """Whether a column or a field of this name cannot change what is learned: ids, sources, scores, dates and the like."""
    lower = name.lower()
    return lower in _HARMLESS or bool(_HARMLESS_FORM.fullmatch(lower) or _HARMLESS_FORM.fullmatch(name))


def dispensable(value: Any) -> bool:
    """Whether a value of a column that is in no list may be left out: numbers, dates, lists of them, and texts for nothing."""
    if isinstance(value, list):
        return all(dispensable(entry) for entry in value)
    return value is None or isinstance(value, _NUMBERS) or (isinstance(value, str) and value.strip() in _EMPTY_TEXTS)


def worth_reading(field: pa.Field, ignored: frozenset[str]) -> bool:
    """Whether the reader of a columnar file has to look at a column's values: the others are judged by name and type."""
    name, kind = field.name, field.type
    if name in ignored or pa.types.is_null(kind):
        return False
    if name in CONVERSATION or name in COMPANIONS or name in MARKS:
        return True
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_temporal, pa.types.is_decimal)
    return not (name in OTHER_SIDE or harmless(name) or any(test(kind) for test in plain))


def learned(name: str, value: Any) -> bool | None:
    """What a mark says: whether its turn or row may be learned; None where it is not a plain yes or no."""
    if name in _DETAILS:  # axolotl: parts of an answer; an answer that may be learned in parts only is not learned
        parts = [part.get("train") for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []
        return all(parts) if parts and len(parts) == len(value) and all(isinstance(part, bool) for part in parts) else None
    said = _SAID.get(str(value).strip().lower())
    return said if said is None or name not in _MASKS else not said


def not_understood(places: Iterable[tuple[str, str]]) -> str:
    """The reason for (name, where) of columns and fields, with the key of the recipe that leaves them out."""
    found = dict.fromkeys(places)
    names = ", ".join(dict.fromkeys(shown(name) for name, _ in found))
    said = ", ".join(f"{where.format(name=repr(shown(name)))}" for name, where in found)
    return f"{said} not understood (data.ignore_columns=[{names}] reads on without)"


def shown(name: object) -> str:
    """A name or a text as a message can print it, in one line of at most 60 characters."""
    text = " ".join(str(name).encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= 60 else text[:59] + "…"
