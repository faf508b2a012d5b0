"""The work in units that two processes take one after the other; whatever is on disk is not done again.

base/S                 a base model
theta0/R/S             θ_0 of a regime
tune/R/ARM/RATE/S      two iterations on a tuning seed, on validation rows
sft/R/S                SFT continued, tuned and early-stopped
play/R/S/ARM           six iterations, a file each
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.proof.measure import accuracy, measured, nll
from bench.proof.play import Data, State, base_rows, data_of, play
from bench.proof.player import make, weights_of
from bench.proof.settings import (
    ARMS,
    ITERATIONS,
    PLAY_RATES,
    REGIMES,
    SEEDS,
    SFT_EPOCHS,
    SFT_RATES,
    TEMPERATURES,
    TUNED_ON,
    TUNING,
    TUNING_ITERATIONS,
    Sizes,
)
from bench.proof.train import fine_tune
from spin_core.recipe import TrainingSettings
from spin_core.store.files import replace_text
from spin_core.store.locks import locked_if_free

_SLEEP_S = 5
_EARLY = ("published", "auto", "auto_search")
_WEAK = ("published", "auto", "auto_search")


@dataclass(frozen=True)
class Unit:
    """One piece of work: where its result lies, what must be there before, and what does it."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[], None]


def tuned_name(regime: str, arm: str, rate: float, seed: int) -> str:
    """The unit that tries a learning rate."""
    return f"tune/{regime}/{arm}/{rate:g}/{seed}"


class Work:
    """All units over one folder, in the order of their weight."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.sizes = folder, sizes
        self.units = [*self._of_regime("main", _EARLY, ()), *self._of_regime("weak", _WEAK, ())]
        self.units += self._of_regime("main", (), tuple(a for a in ARMS if a not in _EARLY))
        self.units += self._of_regime("long", _WEAK, ())
        self._model: Any = make(sizes, 0)

    def _of_regime(self, regime: str, arms: tuple[str, ...], later: tuple[str, ...]) -> list[Unit]:
        found = []
        if arms:
            for seed in (*TUNING, *SEEDS):
                if regime == "main":
                    found.append(Unit(f"base/{seed}", (), lambda seed=seed: self._base(seed)))  # type: ignore[misc]
                found.append(Unit(f"theta0/{regime}/{seed}", (f"base/{seed}",), lambda seed=seed: self._theta0(regime, seed)))  # type: ignore[misc]
            for rate, arm, seed in product(PLAY_RATES, TUNED_ON, TUNING):
                run = lambda arm=arm, rate=rate, seed=seed: self._tune(regime, arm, rate, seed)  # noqa: E731
                found.append(Unit(tuned_name(regime, arm, rate, seed), (f"theta0/{regime}/{seed}",), run))
            for seed in SEEDS:
                found.append(Unit(f"sft/{regime}/{seed}", (f"theta0/{regime}/{seed}",), lambda seed=seed: self._sft(regime, seed)))  # type: ignore[misc]
        tuned = tuple(tuned_name(regime, *each) for each in product(TUNED_ON, PLAY_RATES, TUNING))
        for arm in arms or later:
            for seed in SEEDS:
                run = lambda arm=arm, seed=seed: self._play(regime, seed, arm)  # noqa: E731
                found.append(Unit(f"play/{regime}/{seed}/{arm}", (*tuned, f"theta0/{regime}/{seed}"), run))
        return found

    def done(self, name: str) -> bool:
        """Whether a unit's last file is there."""
        return self._file(name).exists()

    def _file(self, name: str) -> Path:
        return self.folder / (f"{name}/{ITERATIONS}.json" if name.startswith("play/") else f"{name}.json")

    def run(self) -> None:
        """Does what nobody does yet until nothing is left."""
        while left := [unit for unit in self.units if not self.done(unit.name)]:
            if not any(self._take(unit) for unit in left):
                time.sleep(_SLEEP_S)

    def _take(self, unit: Unit) -> bool:
        if not all(map(self.done, unit.needs)):
            return False
        lock = self.folder / "locks" / unit.name.replace("/", "-")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with locked_if_free(lock) as free:
            if not free or self.done(unit.name):
                return False
            begun = time.perf_counter()
            print(f"{time.strftime('%H:%M:%S')} {unit.name} begins", flush=True)
            unit.run()
            print(f"{time.strftime('%H:%M:%S')} {unit.name} took {time.perf_counter() - begun:.0f} s", flush=True)
            return True

    # --- the units

    def _save(self, name: str, content: dict[str, Any]) -> None:
        file = self.folder / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(content))

    def _keep(self, name: str, content: Any) -> None:
        file = self.folder / f"{name}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)

    def _kept(self, name: str) -> Any:
        return torch.load(self.folder / f"{name}.pt", weights_only=False)

    def read(self, name: str) -> dict[str, Any]:
        """A unit's figures."""
        found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return found

    def _data(self, seed: int, regime: str) -> Data:
        return data_of(self.sizes, seed, regime)

    def _base(self, seed: int) -> None:
        model = make(self.sizes, seed)
        keys: dict[str, Any] = {"learning_rate": 1e-3, "epochs": self.sizes.base_epochs, "pairs_per_step": 32, "seed": seed}
        weights, _ = fine_tune(model, base_rows(self.sizes, seed), TrainingSettings(**keys, precision="fp32"), adam=True)
        self._keep(f"base/{seed}", weights)
        self._save(f"base/{seed}", {"parameters": sum(value.numel() for value in model.parameters())})

    def _theta0(self, regime: str, seed: int) -> None:
        """AdamW from the base model: one epoch, or a constant rate until the validation rows have seen no gain for three epochs."""
        model, data, epochs = self._model, self._data(seed, regime), REGIMES[regime].sft_epochs
        model.load_state_dict(self._kept(f"base/{seed}"))
        keys: dict[str, Any] = {"learning_rate": 3e-4, "epochs": epochs or 20, "schedule": "linear" if epochs else "constant", "seed": seed}
        stop = None if epochs else lambda: nll(model, data.validation)
        weights, curve = fine_tune(model, data.train, TrainingSettings(**keys, precision="fp32"), stop, adam=True, patience=3)
        self._keep(f"theta0/{regime}/{seed}", weights)
        found = {"curve": curve, "validation_nll": nll(model, data.validation), "held_out": measured(model, data.held_out, seed)}
        self._save(f"theta0/{regime}/{seed}", found | {"families": [row.family for row in data.held_out]})

    def _tune(self, regime: str, arm: str, rate: float, seed: int) -> None:
        data, start = self._data(seed, regime), self._kept(f"theta0/{regime}/{seed}")
        state, steps = State(start), []
        for iteration in range(TUNING_ITERATIONS):
            done = play(self._model, ARMS[arm], state, start, data, seed, rate, iteration)
            done["validation_t1"] = float(np.mean(accuracy(self._model, data.validation, seed, 1.0)))
            steps.append(done)
        self._save(tuned_name(regime, arm, rate, seed), {"steps": steps})

    def rate(self, regime: str) -> float:
        """The learning rate of all arms: the lowest NLL on validation rows, mean over tuning seeds and the arms that were tuned on."""

        def after(rate: float) -> float:
            names = [tuned_name(regime, arm, rate, seed) for arm, seed in product(TUNED_ON, TUNING)]
            return float(np.mean([self.read(name)["steps"][-1]["validation_nll"] for name in names]))

        return min(PLAY_RATES, key=after)

    def _sft(self, regime: str, seed: int) -> None:
        model, data, start = self._model, self._data(seed, regime), self._kept(f"theta0/{regime}/{seed}")
        curves, best = {}, None
        for rate in SFT_RATES:
            model.load_state_dict(start)
            settings = TrainingSettings(learning_rate=rate, epochs=SFT_EPOCHS, seed=seed, precision="fp32")
            weights, curve = fine_tune(model, data.train, settings, lambda: nll(model, data.validation))
            curves[f"{rate:g}"] = curve
            if best is None or min(curve) < best[0]:
                best = min(curve), rate, weights
        assert best is not None
        model.load_state_dict(best[2])
        found = {"curves": curves, "rate": best[1], "validation_nll": best[0], "held_out": measured(model, data.held_out, seed)}
        found["temperatures"] = {str(heat): accuracy(model, data.held_out, seed, heat, 4) for heat in TEMPERATURES}
        self._keep(f"sft/{regime}/{seed}", weights_of(model))
        self._save(f"sft/{regime}/{seed}", found)

    def _play(self, regime: str, seed: int, arm: str) -> None:
        data, start, name = self._data(seed, regime), self._kept(f"theta0/{regime}/{seed}"), f"play/{regime}/{seed}/{arm}"
        begun, state = 0, State(start)
        if (self.folder / f"{name}/state.pt").exists():
            kept = self._kept(f"{name}/state")
            begun, state = kept["iteration"], State(kept["weights"], kept["fresh"])
        for iteration in range(begun, ITERATIONS):
            done = play(self._model, ARMS[arm], state, start, data, seed, self.rate(regime), iteration)
            self._save(f"{name}/{iteration + 1}", done | {"held_out": measured(self._model, data.held_out, seed)})
            self._keep(f"{name}/state", {"iteration": iteration + 1, "weights": state.weights, "fresh": state.fresh})
        (self.folder / f"{name}/state.pt").unlink()
