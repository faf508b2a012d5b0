"""Where a campaign's ledger keeps what was found of each player."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin_core.campaign.ledger import Turn
from spin_core.evaluation.figures import Judged, judged_on
from spin_core.store import Ref


@dataclass(frozen=True)
class Player:
    """θ_t's artifacts."""

    number: int  # t
    answers: tuple[Ref, ...]  # its first answers to the held-out rows that are reported
    more: tuple[Ref, ...]  # its other ones
    judged: tuple[Ref, ...]  # by every evaluator

    def figures(self, split: str = "test") -> Judged:
        """All figures, with a value a row."""
        return judged_on(split, self.judged)

    def by_row(self) -> Mapping[str, Mapping[str, float]]:
        """Each figure's value by row id: what stands for the row itself, as nats a token."""
        found: dict[str, Mapping[str, float]] = {}
        for name, figure in self.figures().items():
            found[name] = dict(zip(figure.ids, (figure.values_N / figure.weights_N).tolist(), strict=True))
        return found


def players(turns: Sequence[Turn]) -> list[Player]:
    """θ_0, θ_1, … of the turns that were played."""
    if not turns:
        return []
    first = turns[0]
    return [_player(first, 0, "", "start-judged-"), *(_player(turn, turn.iteration + 1, "new_", "judged-") for turn in turns)]


def _player(turn: Turn, number: int, shards: str, judged: str) -> Player:
    def refs(name: str) -> tuple[Ref, ...]:
        return turn.refs(name) if name in turn.made else ()

    found: dict[str, Any] = {name: turn.ref(name) for name in turn.made if name.startswith(judged)}
    return Player(number, refs(f"{shards}test_shards"), refs(f"{shards}more_test_shards"), tuple(found.values()))
