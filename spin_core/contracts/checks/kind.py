"""What a kind of check is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class BadCheck(ValueError):
    """A check that could never be scored, with the reason."""


@dataclass(frozen=True)
class Kind:
    """One way to tell how right an answer is."""

    value: str  # what its value has to be, for messages
    fits: Callable[[Any], bool]  # may raise BadCheck with a reason of its own
    right: Callable[[Any, str], float]  # (value, answer) → 0 … 1
