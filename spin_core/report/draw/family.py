"""Who was trained against whom: θ_0, θ_1, … in a line, an edge from each player's opponent."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from spin_core.report.results import Row

_STEP, _SIDE, _BELOW, _RISE = 150, 44, 40, 11  # pixels; an arc over those between rises by the last for each step that it spans


def family(rows: Sequence[Row], metric: str) -> str:
    """An SVG; the edge to a player says what it gained in the figure of that column."""
    spans = [row.number - row.opponent for row in rows if row.opponent is not None]
    width, line = _SIDE * 2 + _STEP * (len(rows) - 1), 40 + _RISE * max((span for span in spans if span > 1), default=0)
    parts, names, says = [], [], []
    for row in rows:
        if row.opponent is None:
            continue
        start, stop, rise = _SIDE + _STEP * row.opponent, _SIDE + _STEP * row.number, _RISE * (row.number - row.opponent)
        gained = row.cells[metric].moved if metric in row.cells else ""
        if row.number - row.opponent > 1:
            path, above = f"M{start + 9} {line - 14}Q{(start + stop) / 2} {line - 14 - 2 * rise} {stop - 9} {line - 14}", 18 + rise
        else:
            path, above = f"M{start + 17} {line}H{stop - 17}", 9
        parts.append(f'<path class="line way" d="{path}"/>')
        names.append(f'<text x="{(start + stop) / 2}" y="{line - above}" text-anchor="middle">{escape(gained)}</text>')
        says.append(f"{row.name} from θ_{row.opponent} {gained}")
    for row in rows:
        x, kind = _SIDE + _STEP * row.number, {"★": "best", "✗": "lost"}.get(row.mark, "new")
        parts.append(f'<circle class="dot {kind}" cx="{x}" cy="{line}" r="8"/>')
        parts.append(f'<text class="name" x="{x}" y="{line + 28}" text-anchor="middle">{escape(row.name)}</text>')
    label, height = escape("; ".join(says) or "θ_0 alone"), line + _BELOW
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg class="family" {size} role="img" aria-label="{label}">{"".join((*parts, *names))}</svg>'
