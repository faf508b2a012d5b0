"""What of the recipe names an artifact: every key that changes results, and nothing else.

A key is declared `Speed` where it stands in the schema, or it counts. One that stands at its default is left out, so that a
release which adds a key renames nothing that exists.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel


class Speed:
    """Marks a field, as `Annotated[int, Speed]`, that changes speed, memory or what a crash costs, and no result."""


def identity(settings: BaseModel, without: Collection[str] = ()) -> dict[str, Any]:
    """The canonical form of a settings group: its keys that count and differ from their defaults, JSON values.

    A group inside that is set is there even where all of its own keys are at their defaults. `without` names keys that belong
    to another stage's artifact.
    """
    found: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        if name in without or Speed in field.metadata:
            continue
        value = _plain(getattr(settings, name))
        if field.is_required() or value != _plain(field.get_default(call_default_factory=True)):
            found[name] = value
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return identity(value) if isinstance(value, BaseModel) else value
