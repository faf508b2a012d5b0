"""What every group of a recipe's settings is: unknown keys are errors, values stay as they were read, bounds are shown."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _show_bounds(schema: dict[str, Any]) -> None:
    """Adds the bounds of numbers to their descriptions: a form shows those, but not the schema's own bounds."""
    for field in schema.get("properties", {}).values():
        places = [field, *field.get("anyOf", [])]
        bounds = [f"{sign} {place[key]:g}" for place in places for key, sign in _BOUNDS.items() if key in place]
        if bounds:
            field["description"] = f"{field.get('description', '')} [{', '.join(bounds)}]".strip()


class Group(BaseModel):
    """Settings that reject unknown keys and cannot change after they were read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, json_schema_extra=_show_bounds)
