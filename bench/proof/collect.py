"""What a run's folder holds, as figures: one entry a player, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bench.proof.families import FAMILIES
from bench.proof.measure import KL_ROWS
from bench.proof.settings import ARMS, DEFAULT, ITERATIONS, PLAY_RATES, REGIMES, SEEDS, SFT_EPOCHS, SFT_RATES, TUNED_ON, TUNING
from bench.proof.verdict import steps, verdict

Figures = dict[str, dict[str, float]]  # family or "all" → measure → value
CANDIDATES = (DEFAULT, "auto_exact", "auto", "search", "exact", "auto_search_4", "nce", "nce_search", "published")


class Run:
    """A run's folder, whole or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = json.loads((folder / "run.json").read_text())

    def read(self, name: str) -> Any:
        """The content of a file, None where it is not there yet."""
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def players(self, regime: str, seed: int, arm: str) -> list[Any]:
        """θ_0 and the arm's players so far."""
        found = [self.read(f"theta0/{regime}/{seed}")]
        while found[-1] and len(found) <= ITERATIONS:
            found.append(self.read(f"play/{regime}/{seed}/{arm}/{len(found)}"))
        return [player for player in found if player]

    def whole(self, regime: str, arm: str) -> dict[int, list[Any]]:
        """The seeds on which an arm has played all iterations."""
        found = {seed: self.players(regime, seed, arm) for seed in SEEDS}
        return {seed: players for seed, players in found.items() if len(players) == ITERATIONS + 1}

    def sft(self, regime: str) -> dict[int, Any]:
        """The early-stopped SFT players, by seed."""
        return {seed: found for seed in SEEDS if (found := self.read(f"sft/{regime}/{seed}"))}

    def families(self, regime: str, seed: int) -> list[str]:
        """Of the held-out rows."""
        return list(self.read(f"theta0/{regime}/{seed}")["families"])


def figures(held: Mapping[str, Sequence[Any]], families: Sequence[str]) -> Figures:
    """Means over the rows of each family, and over all: accuracies as shares, `nll` a token, `entropy` and `kl` an answer, in nats."""
    found = {}
    for family in ("all", *(name for name in FAMILIES if name in families)):
        rows = [number for number, own in enumerate(families) if family in ("all", own)]
        means = {name: sum(held[name][i] for i in rows) / len(rows) for name in ("t1", "greedy", "entropy") if name in held}
        if "nll" in held:
            means["nll"] = sum(held["nll"][i] for i in rows) / sum(held["tokens"][i] for i in rows)
        if "kl" in held and (known := [held["kl"][i] for i in rows if held["kl"][i] is not None]) and family != "all":
            means["kl"] = sum(known) / len(known)
        found[family] = means
    if "kl" in held:  # families of phrasings only: of the others it is the NLL
        known = [found[name]["kl"] for name in found if name != "all" and FAMILIES[name].kind == "phrasings"]
        found["all"]["kl"] = sum(known) / len(known)
    return found


def _without_rows(player: dict[str, Any]) -> dict[str, Any]:
    return {name: content for name, content in player.items() if name not in ("held_out", "families", "temperatures", "loss")}


def _seed(run: Run, regime: str, seed: int) -> dict[str, Any] | None:
    if not (theta0 := run.read(f"theta0/{regime}/{seed}")):
        return None
    families = theta0["families"]
    found: dict[str, Any] = {"theta0": _without_rows(theta0) | {"figures": figures(theta0["held_out"], families)}}
    if sft := run.read(f"sft/{regime}/{seed}"):
        found["sft"] = _without_rows(sft) | {"figures": figures(sft["held_out"], families)}
        found["sft"]["temperatures"] = {heat: figures({"t1": right}, families) for heat, right in sft["temperatures"].items()}
    found["arms"] = {
        arm: [_without_rows(player) | {"figures": figures(player["held_out"], families)} for player in players]
        for arm in ARMS
        if (players := run.players(regime, seed, arm)[1:])
    }
    return found


def verdict_of(run: Run, regime: str, arm: str) -> dict[str, Any]:
    """The bar for an arm; the project's default is what it was set for."""
    players = {seed: [player["held_out"] for player in listed] for seed, listed in run.whole(regime, arm).items()}
    sft = {seed: found["held_out"] for seed, found in run.sft(regime).items()}
    return verdict(players, sft, len(SEEDS), ITERATIONS)


def collect(run: Run) -> dict[str, Any]:
    """Everything, as it goes into the results file."""
    regimes = {}
    for name, regime in REGIMES.items():
        seeds = {str(seed): found for seed in SEEDS if (found := _seed(run, name, seed))}
        tuning = {
            unit: [_without_rows(step) for step in found["steps"]]
            for arm, rate, seed in product(TUNED_ON, PLAY_RATES, TUNING)
            if (found := run.read(f"tune/{name}/{(unit := f'{arm}/{rate:g}/{seed}')}"))
        }
        verdicts = {arm: verdict_of(run, name, arm) for arm in CANDIDATES if run.whole(name, arm)}
        regimes[name] = {"title": regime.title, "tuning": tuning, "seeds": seeds, "verdicts": verdicts}
    settings = {"seeds": SEEDS, "tuning_seeds": TUNING, "iterations": ITERATIONS, "play_rates": PLAY_RATES, "sft_rates": SFT_RATES}
    settings |= {"sft_epochs": SFT_EPOCHS, "kl_rows": KL_ROWS, "arms": {name: vars(arm) for name, arm in ARMS.items()}}
    final = verdict_of(run, "main", DEFAULT)
    return {"bench": "proof", **run.facts, "settings": settings, "verdict": {"arm": DEFAULT, **final}, "regimes": regimes}


__all__ = ["CANDIDATES", "Figures", "Run", "collect", "figures", "steps", "verdict_of"]
