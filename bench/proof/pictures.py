"""The curves by iteration: the mean over seeds, with the 95 % interval as a band."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.proof.collect import Run, figures
from bench.proof.settings import ARMS, DEFAULT, ITERATIONS, REGIMES
from bench.proof.statistics import over_seeds

_DRAWN = {"published": "#c44", "auto": "#d90", DEFAULT: "#06c", "nce_search": "#393"}
_PANELS = {"t1": ("T = 1 accuracy, %", 100.0), "greedy": ("greedy accuracy, %", 100.0), "nll": ("NLL, nats a token", 1.0)}
_PANELS |= {"kl": ("KL of phrasings, nats", 1.0), "entropy": ("own entropy, nats an answer", 1.0)}


def draw(run: Run, regime: str, file: Path) -> bool:
    """One SVG of a regime; nothing where no arm has all its iterations on two seeds."""
    series = {}
    for arm in _DRAWN:
        whole = run.whole(regime, arm)
        if len(whole) > 1:
            series[arm] = [[figures(p["held_out"], run.families(regime, seed))["all"] for p in listed] for seed, listed in whole.items()]
    if not series:
        return False
    sft = [figures(found["held_out"], run.families(regime, seed))["all"] for seed, found in run.sft(regime).items()]
    matplotlib.rcParams["svg.hashsalt"] = "proof"  # the same figures give the same file
    picture = Figure(figsize=(15, 3.2), layout="constrained")
    panes = picture.subplots(1, len(_PANELS))
    for pane, (measure, (title, factor)) in zip(panes, _PANELS.items(), strict=True):
        for arm, seeds in series.items():
            bands = [over_seeds([factor * listed[t][measure] for listed in seeds]) for t in range(ITERATIONS + 1)]
            pane.plot([band.mean for band in bands], color=_DRAWN[arm], marker="o", markersize=3, label=ARMS[arm].title)
            pane.fill_between(range(len(bands)), *zip(*[(b.low, b.high) for b in bands], strict=True), color=_DRAWN[arm], alpha=0.12, lw=0)
        if sft:
            level = factor * sum(own[measure] for own in sft) / len(sft)
            pane.axhline(level, color="#555", ls="--", lw=1, label="SFT continued, early-stopped")
        pane.set_title(title, fontsize=9)
        pane.set_xlabel("iteration (0: θ_0)", fontsize=8)
        pane.tick_params(labelsize=8)
    handles, labels = panes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    picture.suptitle(f"{regime}: {REGIMES[regime].title}", fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(file, format="svg", metadata={"Date": None})
    return True
