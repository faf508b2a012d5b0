"""YAML whose text stays text: `revision: 0123456` is no number, `split: on` is not true, and `5e-6` is a number.

YAML decides by a scalar's look what it is, and by rules that surprise. Here the recipe's field decides: what is read remembers
how it was written until its field is known.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel


@dataclass(frozen=True)
class Scalar:
    """An unquoted scalar that YAML takes for something else than text."""

    text: str
    value: Any


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        if isinstance(node, yaml.ScalarNode) and isinstance(value, Hashable) and not isinstance(value, str | Scalar):
            return Scalar(node.value, value)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a sign in 5.0e-6
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def read(text: str) -> Any:
    """The content of a YAML text with Scalars in it; `settled` takes them out. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


def settled(content: Any, kind: Any = Any) -> Any:
    """`content` as a field of type `kind` wants it: as it was written where that is text, else as YAML reads it."""
    if isinstance(content, Scalar):
        return content.text if content.value is not None and _is_text(kind) else content.value
    parts = list(_parts(kind))
    if isinstance(content, list):
        items = [get_args(part)[0] for part in parts if get_origin(part) is list]
        return [settled(entry, _any_of(items)) for entry in content]
    if isinstance(content, dict):
        named = {key.text if isinstance(key, Scalar) else key: entry for key, entry in content.items()}
        models = [part.model_fields for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        values = [get_args(part)[1] for part in parts if get_origin(part) is dict]
        return {
            key: settled(entry, _any_of([*(fields[key].annotation for fields in models if key in fields), *values]))
            for key, entry in named.items()
        }
    return content


def _any_of(kinds: list[Any]) -> Any:
    return Union[tuple(kinds)] if kinds else Any  # noqa: UP007  of a list


def _parts(kind: Any) -> Iterator[Any]:
    """The members of a union, without what Annotated adds."""
    if get_origin(kind) is Annotated:
        yield from _parts(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for part in get_args(kind):
            yield from _parts(part)
    else:
        yield kind


def _is_text(kind: Any) -> bool:
    parts = {part for part in _parts(kind) if part is not type(None)}
    return bool(parts) and all(part is str or get_origin(part) is Literal for part in parts)
