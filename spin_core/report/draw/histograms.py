"""Histograms of the held-out rows before and after each iteration: margins of the pairs, lengths of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spin_core.campaign.ledger import Turn
from spin_core.contracts.rows import PAIRS_OF, SCORES_OF
from spin_core.report.draw.panel import Panel, Picture
from spin_core.scoring.scores import read_scores
from spin_core.store import Ref

_BINS = 24
Values = NDArray[np.float64]


def before_after(turns: Sequence[Turn]) -> list[Picture]:
    """Two panels an iteration."""
    return [picture for turn in turns for picture in (_margins(turn), _lengths(turn))]


def margins(turn: Turn) -> tuple[Values, Values]:
    """log p(human) − log p(sampled) [D] of the turn's held-out pairs, in nats an answer: under θ_t, and under θ_{t+1}."""
    pairs = turn.ref("pairs").path / PAIRS_OF["test"]
    scored = ("held_out" if "held_out" in turn.made else "reference", "scored")
    before, after = (read_scores(turn.ref(name).path / SCORES_OF["test"], pairs) for name in scored)
    first, second = (table["real_logp"].to_numpy() - table["generated_logp"].to_numpy() for table in (before, after))
    return first, second


def _margins(turn: Turn) -> Picture:
    old, new = margins(turn)
    head = f"Iteration {turn.iteration}: margins of the pairs"
    panel, edges = _panel((old, new), "nats")
    _steps(panel, old, edges, "old")
    _steps(panel, new, edges, "new")
    x = panel.across.at(0.0)
    if panel.across.start < x < panel.across.stop:
        panel.add(f'<path class="turn" d="M{x:.1f} {panel.up.stop}V{panel.up.start}"/>')
    panel.legend([(f"θ_{turn.opponent}", "old"), (f"θ_{turn.iteration + 1}", "new")])
    return panel.picture(head, f"{head}: median {np.median(old):.2f} before, {np.median(new):.2f} after" if len(old) else f"{head}: none")


def _lengths(turn: Turn) -> Picture:
    human = _column(turn.ref("pairs").path / PAIRS_OF["test"], "real_ids")
    old, new = (_of_shards(turn.refs(f"{name}test_shards")) for name in ("", "new_"))
    head = f"Iteration {turn.iteration}: answer lengths"
    panel, edges = _panel((human, old, new), "tokens")
    for values, kind in ((human, "human"), (old, "old"), (new, "new")):
        _steps(panel, values, edges, kind)
    panel.legend([("human", "human"), (f"θ_{turn.opponent}", "old"), (f"θ_{turn.iteration + 1}", "new")])
    medians = [f"{name} {np.median(values):.0f}" for name, values in (("human", human), ("before", old), ("after", new)) if len(values)]
    return panel.picture(head, f"{head}: medians {', '.join(medians)}")


def _panel(values: Sequence[Values], label: str) -> tuple[Panel, Values]:
    """An empty chart over all but the outermost two percent at each end, which stands in the first and the last bin."""
    known = np.concatenate(values) if any(map(len, values)) else np.array([0.0, 1.0])
    low, high = np.quantile(known, (0.02, 0.98))
    whole = bool((known == known.round()).all())  # counts: a bin has equally many whole numbers
    if whole:
        width = max(1, -(-int(high - low + 1) // _BINS))
        edges = np.arange(low - 0.5, high + width + 0.5, width)
    else:
        edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    top = max(_shares(one, edges).max() for one in values)
    panel = Panel((float(edges[0]), float(edges[-1])), (0.0, float(top) * 1.15 or 1.0), label, percent=True)
    panel.grid()
    return panel, edges


def _shares(values: Values, edges: Values) -> Values:
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].astype(np.float64)
    return counts / max(1, len(values))


def _steps(panel: Panel, values: Values, edges: Values, kind: str) -> None:
    shares = _shares(values, edges)
    outline = [(float(x), float(y)) for left, right, y in zip(edges[:-1], edges[1:], shares, strict=True) for x in (left, right)]
    if kind != "human":
        panel.band([(x, 0.0) for x, _ in outline], outline, kind)
    panel.line(outline, kind)


def _of_shards(shards: Sequence[Ref]) -> Values:
    found = [_column(ref.path / "shard.parquet", "generated_ids") for ref in shards]
    return np.concatenate(found) if found else np.zeros(0)


def _column(path: Path, name: str) -> Values:
    """The lengths of a column of ids, a row group at a time."""
    with pq.ParquetFile(path) as file:
        lengths = [pc.list_value_length(batch.column(0)).to_numpy() for batch in file.iter_batches(columns=[name])]
    return np.concatenate(lengths).astype(np.float64) if lengths else np.zeros(0)
