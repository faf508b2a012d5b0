"""All held-out answers of all players, row by row, packed for the page: gzip of a JSON line a row.

Nothing is held but a few rows of each file and the packed bytes. A page may grow by `BYTES_A_ROW` for every row; where all that was
said does not fit, `LADDER` says what is left out first, and the page says it too.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from spin_core.campaign.ledger import Turn
from spin_core.contracts.rows import ANSWERED, GREEDY, PAIRS_OF
from spin_core.contracts.tables import iter_tables
from spin_core.report.draw.histograms import margins
from spin_core.report.players import players
from spin_core.store import Ref

BYTES_A_ROW = 2600  # of base64: 1,000 rows and the rest of the page stay below 3 MB
_AT_LEAST = 400_000  # bytes that few rows may take, too
_TRIED = 200  # rows that say what of the ladder is worth trying with all
_ROWS = 256  # in memory, of each file
_ANSWER = ["row_id", "sample", "finish_reason", "generated"]


@dataclass(frozen=True)
class Kept:
    """What is shown of a row."""

    samples: int | None  # drawn answers a player; None: all
    characters: int | None  # of a text; None: all

    def cut(self, text: str) -> str:
        """The text, with a mark where it was longer."""
        return text if self.characters is None or len(text) <= self.characters else text[: self.characters] + " […]"

    @property
    def says(self) -> str:
        """What is not shown, for people; empty where everything is."""
        parts = []
        if self.samples is not None:
            parts.append("of each model's drawn answers the first")
        if self.characters is not None:
            parts.append(f"of each text the first {self.characters:,} characters")
        return f"To keep this page small it holds {' and '.join(parts)}; all of it is in the artifacts." if parts else ""


LADDER = [Kept(None, None), *(Kept(1, characters) for characters in (None, 4000, 2000, 1000, 500, 200))]


@dataclass(frozen=True)
class Answers:
    """What the page's browser is made of."""

    packed: str  # base64
    rows: int
    figures: list[str]  # those with a value a row; benchmarks have rows of their own
    says: str


def held_out_answers(turns: Sequence[Turn]) -> Answers:
    """Every held-out row of the newest turn: its prompt, the human answer, every player's answers, figures and margins."""
    table = _Table(turns)
    rows = len(table.order)
    allowed = max(_AT_LEAST, rows * BYTES_A_ROW) * 3 // 4
    some = min(rows, _TRIED)
    likely = [kept for kept in LADDER if _packed(islice(table.rows(kept), some), allowed * some // max(rows, 1)) is not None]
    for kept in (*likely, LADDER[-1]):
        packed = _packed(table.rows(kept), allowed if kept is not LADDER[-1] else None)
        if packed is not None:
            break
    assert packed is not None
    return Answers(base64.b64encode(packed).decode(), rows, table.names, kept.says)


def _packed(rows: Iterable[Mapping[str, Any]], allowed: int | None) -> bytes | None:
    """The rows as gzip, or None as soon as it is more than is allowed."""
    pack, parts, size = zlib.compressobj(6, zlib.DEFLATED, 31), list[bytes](), 0
    for row in rows:
        part = pack.compress((json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8", "replace"))
        size += len(part)
        parts.append(part)
        if allowed is not None and size > allowed:
            return None
    found = b"".join([*parts, pack.flush()])
    return None if allowed is not None and len(found) > allowed else found


class _Table:
    """What is known of each held-out row: figures are held, texts are read along."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._prompts = turns[-1].ref("prompts").path / "test.parquet"
        self.order = {row_id: number for number, row_id in enumerate(_ids(self._prompts))}
        self._players = players(turns)
        self._figures = [player.by_row() for player in self._players]
        known = dict.fromkeys(name for figures in self._figures for name, found in figures.items() if found.keys() & self.order.keys())
        self.names = list(known)
        self._margins = [_margins(turn) for turn in turns]

    def rows(self, kept: Kept) -> Iterator[dict[str, Any]]:
        """id; p: the conversation before the answer; h: the human answer; c: the check; a: a player's answers; f: figures; m: margins."""
        readers = [[_Answers(refs, self.order) for refs in (player.answers, player.more)] for player in self._players]
        for row in _each(self._prompts, ["row_id", "real", "check"]):
            number = row["row_id"]
            talk = [[turn["role"], kept.cut(turn["content"])] for turn in row["real"]]
            yield {
                "id": number,
                "p": talk[:-1],
                "h": talk[-1][1],
                "c": row["check"],
                "a": [_of_player([answer for reader in pair for answer in reader.of(number)], kept) for pair in readers],
                "f": {name: [_short(figure.get(name, {}).get(number)) for figure in self._figures] for name in self.names},
                "m": [_short(margin.get(number)) for margin in self._margins],
            }


def _of_player(answers: Sequence[Mapping[str, Any]], kept: Kept) -> dict[str, Any]:
    """d: drawn answers; u: which of them were cut at the limit; g: the greedy one."""
    drawn = [answer for answer in answers if answer["sample"] != GREEDY][: kept.samples]
    greedy = [answer for answer in answers if answer["sample"] == GREEDY]
    found: dict[str, Any] = {"d": [kept.cut(answer["generated"]) for answer in drawn]}
    if cut := [number for number, answer in enumerate(drawn) if answer["finish_reason"] == "length"]:
        found["u"] = cut
    return found | ({"g": kept.cut(greedy[0]["generated"])} if greedy else {})


class _Answers:
    """A player's answers, read along with the rows: shards have their order, and rows that are not there are passed over."""

    def __init__(self, shards: Sequence[Ref], order: Mapping[str, int]) -> None:
        self._order = order
        each = (row for ref in shards for row in _each(ref.path / "shard.parquet", _ANSWER) if row["row_id"] in order)
        self._groups = groupby(each, key=lambda row: row["row_id"])
        self._next: tuple[str, list[dict[str, Any]]] | None = self._read()

    def _read(self) -> tuple[str, list[dict[str, Any]]] | None:
        found = next(self._groups, None)
        return None if found is None else (found[0], [row for row in found[1] if row["finish_reason"] in ANSWERED])

    def of(self, row_id: str) -> list[dict[str, Any]]:
        """The answers to a row; rows must be asked for in order."""
        while self._next and self._order[self._next[0]] < self._order[row_id]:
            self._next = self._read()
        if self._next is None or self._next[0] != row_id:
            return []
        found = self._next[1]
        self._next = self._read()
        return found


def _margins(turn: Turn) -> dict[str, float]:
    """What the turn added to the margin of each held-out pair, in nats an answer."""
    before, after = margins(turn)
    ids = _ids(turn.ref("pairs").path / PAIRS_OF["test"])
    return dict(zip(ids, (after - before).tolist(), strict=True))


def _ids(path: Path) -> list[str]:
    return [row_id for table in iter_tables(path, ["row_id"]) for row_id in table["row_id"].to_pylist()]


def _each(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    for table in iter_tables(path, columns, _ROWS):
        yield from table.to_pylist()


def _short(value: float | None) -> float | None:
    return None if value is None or value != value else float(f"{value:.4g}")
