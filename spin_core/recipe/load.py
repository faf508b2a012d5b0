"""Reading a recipe: YAML, `--set` overrides, one line for what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from spin_core.recipe import scalars
from spin_core.recipe.keys import closest
from spin_core.recipe.schema import Recipe
from spin_core.runtime.errors import BadInput

_BRANCH = re.compile(r"constrained-\w+|literal\[.*|list\[.*")  # what pydantic calls the parts of "a number or auto"


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Reads a YAML recipe and applies `key.sub=value` overrides. Raises BadInput in one line."""
    try:
        content = scalars.read(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"recipe {path} does not exist", remedy="see recipes/ for examples") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"recipe {path} cannot be read: {' '.join(str(error).split())}", remedy="mend the YAML") from None
    if not isinstance(content, dict):
        raise BadInput(f"recipe {path} is not a mapping of keys", remedy="see recipes/demo.yaml for an example")
    return validated(content, str(path), overrides)


def with_overrides(recipe: Recipe, overrides: list[str] | None) -> Recipe:
    """The recipe with `key.sub=value` overrides applied. Raises BadInput in one line."""
    return validated(recipe.model_dump(mode="json"), f"recipe {recipe.name}", overrides) if overrides else recipe


def validated(content: dict[str, Any], source: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe that a mapping of keys is, with overrides applied. Raises BadInput in one line, which names `source`."""
    for override in overrides or []:
        _apply(content, override)
    try:
        return Recipe.model_validate(scalars.settled(content, Recipe))
    except ValidationError as error:
        raise BadInput(_first_problem(error, source)) from None


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise BadInput(f"--set {override!r} is not key=value", remedy="for example --set training.beta=0.1")
    *groups, last = key.split(".")
    target: Any = content
    for part in groups:
        target = target[int(part)] if isinstance(target, list) and part.isdigit() and int(part) < len(target) else _child(target, part, key)
    try:
        parsed = scalars.read(value)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {key}: {' '.join(str(error).split())}", remedy="put the value in quotes within quotes") from None
    if isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = parsed
    elif isinstance(target, dict):
        target[last] = parsed
    else:
        raise BadInput(f"--set {key}: no such place in the recipe", remedy="list entries are numbered from 0")


def _child(target: Any, part: str, key: str) -> Any:
    if not isinstance(target, dict):
        raise BadInput(f"--set {key}: no such place in the recipe", remedy="list entries are numbered from 0")
    if target.get(part) is None or target[part] == scalars.Scalar("", None):
        target[part] = {}
    return target[part]


def _first_problem(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not _BRANCH.fullmatch(str(part))) or "recipe"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        meant = closest(key, Recipe)
        remedy = f"did you mean {meant}?" if meant else "`spinflow keys` lists what there is"
        return f"{source}: unknown key {key}{more}; {remedy}"
    what = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict) and first["type"] == "value_error":  # of a whole group: its message names the key
        return f"{source}: {what}{more}; change it in the recipe, or for one run with --set"
    value = "" if first["type"] == "missing" else f", got {first['input']!r}"
    return f"{source}: {key}: {what}{value}{more}; change it in the recipe or with --set {key}=…"
