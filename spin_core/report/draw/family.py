"""Who was trained against whom: θ_0, θ_1, … in a line, an edge from each player's opponent."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from spin_core.report.results import Row

_STEP, _TOP, _SIDE = 150, 58, 44


def family(rows: Sequence[Row], metric: str) -> str:
    """An SVG; the edge to a player says what it gained in the figure of that column."""
    width, best = _SIDE * 2 + _STEP * (len(rows) - 1), next((row.number for row in rows if row.mark == "★"), 0)
    parts, says = [], []
    for row in rows[1:]:
        assert row.opponent is not None
        start, stop = _SIDE + _STEP * row.opponent, _SIDE + _STEP * row.number
        over = 26 if row.number - row.opponent > 1 else 0  # an arc over those between
        arc = f"M{start + 8} {_TOP - 15}Q{(start + stop) / 2} {_TOP - 26 - over} {stop - 9} {_TOP - 16}"
        path = arc if over else f"M{start + 17} {_TOP}H{stop - 19}"
        gained = row.cells[metric].moved if metric in row.cells else ""
        parts.append(f'<path class="line way" d="{path}"/>')
        y = _TOP - 9 if not over else _TOP - 18 - over
        parts.append(f'<text x="{(start + stop) / 2}" y="{y}" text-anchor="middle">{escape(gained)}</text>')
        says.append(f"{row.name} from θ_{row.opponent} {gained}")
    for row in rows:
        x, kind = _SIDE + _STEP * row.number, "best" if row.number == best else "lost" if row.mark == "✗" else "new"
        parts.append(f'<circle class="dot {kind}" cx="{x}" cy="{_TOP}" r="8"/>')
        parts.append(f'<text class="name" x="{x}" y="{_TOP + 28}" text-anchor="middle">{escape(row.name)}</text>')
    label, size = escape("; ".join(says) or "θ_0 alone"), f'width="{width}" height="{_TOP + 40}" viewBox="0 0 {width} {_TOP + 40}"'
    return f'<svg class="family" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'
