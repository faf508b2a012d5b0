"""The picture of a model card: what counts, player by player, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from spin_core.campaign.ledger import Turn
from spin_core.campaign.rules import metric_of
from spin_core.evaluation.intervals import Interval
from spin_core.recipe import StopSettings
from spin_core.report.results import title


def draw(turns: Sequence[Turn], stop: StopSettings, file: Path) -> None:
    """Writes a PNG with the held-out figures that counts and the likelihood of the human answers, θ_0 first."""
    splits = [turn.metrics["splits"]["test"] for turn in turns]
    players = [splits[0]["before"], *(split["after"] for split in splits)]
    names = [name for name in dict.fromkeys((metric_of(turns[-1].metrics, stop), "nll")) if name in players[0]]
    if not names:
        return
    figure = Figure(figsize=(4.2 * len(names), 2.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        found = [player[name] for player in players]
        half = [Interval(**one).half or 0.0 for one in found]
        axis.errorbar([f"θ_{t}" for t in range(len(found))], [one["value"] for one in found], yerr=half, marker="o", capsize=4)
        axis.set_title(title(name), fontsize=10)
        axis.margins(x=0.2)
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
