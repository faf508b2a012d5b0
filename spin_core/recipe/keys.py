"""The recipe's keys as people write them, read from the pydantic models: for `spinflow keys` and for mended spellings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


@dataclass(frozen=True)
class Key:
    """One settable key."""

    name: str  # dotted, as in `--set training.beta=0.1`
    kind: str  # type and bounds
    default: str
    text: str  # the field's docstring


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key of a recipe model in the order of its source; entries of a list of groups are named `iterations.0.key`."""
    for name, field in model.model_fields.items():
        group, inside = _group(field.annotation), f"{prefix}{name}."
        if group is None or inside.count(".") > 2:
            yield Key(prefix + name, _kind(field), _default(field), field.description or "")
            continue
        yield from keys(group, inside + ("0." if get_origin(field.annotation) is list else ""))


def closest(name: str, model: type[BaseModel]) -> str | None:
    """The key that `name` was probably meant to be: a close spelling in the same group, or its last word in another."""
    known = [key.name for key in keys(model)]
    known += {key.partition(".")[0] for key in known}
    group, _, word = name.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == group}
    close = difflib.get_close_matches(word, siblings, 1)
    if close:
        return siblings[close[0]]
    return next((key for key in known if key.rpartition(".")[2] == word), None)


def _group(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _kind(field: FieldInfo) -> str:
    return " ".join([_type(field.annotation), *_bounds(field.metadata)])


def _bounds(metadata: Iterable[Any]) -> list[str]:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    entries = [inner for entry in metadata for inner in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    return [f"{sign} {getattr(entry, name):g}" for entry in entries for name, sign in signs.items() if hasattr(entry, name)]


def _type(annotation: Any) -> str:
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return " ".join([_type(parts[0]), *_bounds(parts[1:])])
    if not parts:
        return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    if get_origin(annotation) is dict:
        return "mapping"
    if get_origin(annotation) is list:
        return f"list of {_type(parts[0])}"
    return " | ".join(str(part) if isinstance(part, str) else _type(part) for part in parts)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
