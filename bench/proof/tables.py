"""The tables of the page, in Markdown: means over seeds, and differences of the same seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.proof.collect import CANDIDATES, Figures, Run, figures
from bench.proof.families import FAMILIES
from bench.proof.settings import ARMS, ITERATIONS, PLAY_RATES, REGIMES, SEEDS, TUNED_ON, TUNING, Arm
from bench.proof.statistics import Interval, over_seeds

_MEASURES = ("t1", "greedy", "nll", "kl", "entropy")
_HEADS = ("T = 1, %", "greedy, %", "NLL a token", "KL of phrasings", "own entropy")
BySeed = dict[int, Figures]
FIXED = ("θ_0", "SFT continued, early-stopped")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def shown(interval: Interval | None, factor: float, digits: int, sign: bool = False) -> str:
    """A mean with its interval."""
    if interval is None:
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"
    if not math.isfinite(interval.low):
        return format(factor * interval.mean, form)
    return f"{factor * interval.mean:{form}} [{factor * interval.low:{form}}, {factor * interval.high:{form}}]"


def players(run: Run, regime: str) -> dict[str, BySeed]:
    """θ_0, SFT (also at lower temperatures) and every arm's last player: figures by seed."""
    family = {seed: run.families(regime, seed) for seed in SEEDS if run.read(f"theta0/{regime}/{seed}")}
    theta0 = {seed: run.read(f"theta0/{regime}/{seed}") for seed in family}
    found: dict[str, BySeed] = {FIXED[0]: {seed: figures(player["held_out"], family[seed]) for seed, player in theta0.items()}}
    sft = run.sft(regime)
    found[FIXED[1]] = {seed: figures(player["held_out"], family[seed]) for seed, player in sft.items()}
    for heat in sorted({heat for player in sft.values() for heat in player["temperatures"]}, reverse=True):
        found[f"the same, sampled at T = {heat}"] = {
            seed: figures({"t1": player["temperatures"][heat]}, family[seed]) for seed, player in sft.items()
        }
    for arm, described in ARMS.items():
        whole = run.whole(regime, arm)
        found[described.title] = {seed: figures(listed[-1]["held_out"], family[seed]) for seed, listed in whole.items()}
    return {name: by_seed for name, by_seed in found.items() if by_seed}


def _format(measure: str) -> tuple[float, int]:
    return (100.0, 1) if measure in ("t1", "greedy") else (1.0, 3)


def ends(run: Run, regime: str) -> list[str]:
    """How everybody ends, over all families."""

    def cells(by_seed: BySeed) -> list[str]:
        found = []
        for measure in _MEASURES:
            values = [own["all"][measure] for own in by_seed.values() if measure in own["all"]]
            found.append(shown(over_seeds(values), *_format(measure)) if values else "–")
        return found

    rows = [(name, str(len(by_seed)), *cells(by_seed)) for name, by_seed in players(run, regime).items()]
    return table(("player", "seeds", *_HEADS), rows)


def against_sft(run: Run, regime: str) -> list[str]:
    """Each player less the SFT player of the same seed."""
    found = players(run, regime)
    sft = found.get(FIXED[1], {})

    def cells(by_seed: BySeed) -> list[str]:
        made = []
        for measure in _MEASURES:
            gains = [own["all"][measure] - sft[s]["all"][measure] for s, own in by_seed.items() if s in sft and measure in own["all"]]
            made.append(shown(over_seeds(gains), *_format(measure), sign=True) if gains else "–")
        return made

    rows = [(name, *cells(by_seed)) for name, by_seed in found.items() if name != FIXED[1]]
    return table(("player − SFT", *_HEADS), rows)


def by_family(run: Run, regime: str, names: Sequence[str]) -> list[str]:
    """T = 1 / greedy accuracy and nats of the last players, family by family."""
    own = REGIMES[regime].families

    def cell(by_seed: BySeed, family: str) -> str:
        def mean(measure: str, factor: float) -> float:
            return factor * sum(figures[family][measure] for figures in by_seed.values()) / len(by_seed)

        return f"{mean('t1', 100):.1f} / {mean('greedy', 100):.1f} / {mean('kl', 1):.3f}"

    found = players(run, regime)
    rows = [(name, *(cell(found[name], family) for family in own)) for name in names if name in found]
    return table(("player", *(f"{name} ({FAMILIES[name].kind})" for name in own)), rows)


def by_iteration(run: Run, regime: str, arms: Sequence[str]) -> list[str]:
    """T = 1 / greedy / NLL after each iteration, means over the seeds that are whole."""
    rows = []
    for arm in arms:
        whole = run.whole(regime, arm)
        listed = [[figures(p["held_out"], run.families(regime, seed))["all"] for p in own] for seed, own in whole.items()]

        def mean(t: int, measure: str, listed: Any = listed) -> float:
            return float(sum(own[t][measure] for own in listed) / len(listed))

        if listed:
            cells = [f"{100 * mean(t, 't1'):.1f} / {100 * mean(t, 'greedy'):.1f} / {mean(t, 'nll'):.3f}" for t in range(ITERATIONS + 1)]
            rows.append((ARMS[arm].title, *cells))
    return table(("arm", "θ_0", *(str(t + 1) for t in range(ITERATIONS))), rows) if rows else []


def chosen(run: Run, regime: str) -> list[str]:
    """What the validation rows chose."""
    tried = []
    for rate in PLAY_RATES:
        found = [[run.read(f"tune/{regime}/{arm}/{rate:g}/{seed}") for seed in TUNING] for arm in TUNED_ON]
        if all(map(all, found)):
            tried.append(f"{' and '.join(_tried([own['steps'][-1] for own in listed]) for listed in found)} at {rate:g}")
    lines = [f"- learning rate of all arms: {_rate(run, regime)}; NLL (T = 1 accuracy) after two iterations of {' and '.join(TUNED_ON)}:"]
    lines[0] += f" {'; '.join(tried)}"
    if sft := run.sft(regime):
        told = ", ".join(f"{player['rate']:g} after {_best(player)} epochs" for player in sft.values())
        lines.append(f"- SFT continued, by seed: {told}")
    for arm, described in ARMS.items():
        whole = list(run.whole(regime, arm).values())
        if whole and (described.search or described.beta == "auto"):
            lines.append(f"- {described.title}: {'; '.join(_own(described, whole))}")
    return lines


def _tried(lasts: list[Any]) -> str:
    """Means over the tuning seeds."""
    nll, right = (sum(last[name] for last in lasts) / len(lasts) for name in ("validation_nll", "validation_t1"))
    return f"{nll:.4f} ({100 * right:.1f} %)"


def _own(arm: Arm, whole: list[list[Any]]) -> list[str]:
    """β and γ of an arm's iterations, means over seeds; θ_0 is the first of each."""

    def means(key: str) -> list[float]:
        return [sum(players[t][key] for players in whole) / len(whole) for t in range(1, ITERATIONS + 1)]

    told = []
    if arm.beta == "auto" and all("beta" in player for players in whole for player in players[1:]):
        told.append("mean β " + ", ".join(f"{beta:.2f}" for beta in means("beta")))
    if arm.search:
        told.append("mean γ " + ", ".join(f"{gamma:.2f}" for gamma in means("gamma")))
    return told


def _rate(run: Run, regime: str) -> str:
    """What the arms of a regime played with."""
    found = (run.read(f"play/{regime}/{seed}/{arm}/1") for seed in SEEDS for arm in ARMS)
    return next((f"{played['settings']['rate']:g}" for played in found if played), "not chosen yet")


def _best(player: dict[str, Any]) -> int:
    curve = player["curves"][f"{player['rate']:g}"]
    return int(curve.index(min(curve)))


def verdicts(run: Run, regime: str, of: Callable[[Run, str, str], dict[str, Any]]) -> list[str]:
    """The bar, for every arm that could be the default."""
    rows = []
    for arm in CANDIDATES:
        if not run.whole(regime, arm):
            continue
        found = of(run, regime, arm)
        gains = found["against_sft"]
        cells = [shown(gains[measure], *_format(measure), sign=True) for measure in ("t1", "greedy", "nll")]
        rows.append((ARMS[arm].title, f"{len(found['losses'])} of {found['tests']}", *cells, "yes" if found["met"] else "no"))
    head = (
        "arm",
        "steps that lose by more than their interval",
        "T = 1 against SFT",
        "greedy against SFT",
        "NLL won against SFT",
        "bar met",
    )
    return table(head, rows) if rows else []
