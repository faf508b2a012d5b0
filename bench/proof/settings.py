"""What is run: sizes, regimes, arms, and the grids from which a validation split chooses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.proof.families import FAMILIES
from spin_core.recipe import TrainingSettings

SEEDS = (10, 11, 12, 13, 14)  # reported; 0 to 4 were looked at while the tasks were made
TUNING = (100, 101)  # other draws of everything: learning rates are chosen on their validation rows
ITERATIONS = 6
GAMMAS = (0.25, 0.5, 0.75)  # of the line search; 0 and 1 always take part
SAMPLES = 4  # held-out answers a prompt at T = 1
TEMPERATURES = (0.7, 0.85)  # of the SFT player
PLAY_RATES = (1e-6, 3e-6, 1e-5, 3e-5)  # for all arms of self-play
SFT_RATES = (1e-5, 3e-5, 1e-4, 3e-4)  # for SFT continued
SFT_EPOCHS = 6
TUNING_ITERATIONS = 2
TOKENS = 4096  # a micro-batch


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `small` is for tests."""

    train: int = 2000
    validation: int = 400
    held_out: int = 800
    base: int = 6000  # spoiled rows that the base model is made of
    base_epochs: int = 5
    width: int = 128
    layers: int = 4

    @staticmethod
    def small() -> Sizes:
        """Seconds, and no meaning."""
        return Sizes(40, 20, 20, 60, 1, 32, 1)


@dataclass(frozen=True)
class Regime:
    """Which rows, and how good the player is that self-play starts from."""

    title: str
    families: tuple[str, ...]
    sft_epochs: int | None  # None: to the optimum on the validation rows
    train: float = 1.0  # of `Sizes.train`

    def shares(self, rows: int) -> dict[str, int]:
        """Rows a family."""
        whole = sum(FAMILIES[name].share for name in self.families)
        return {name: max(1, round(rows * FAMILIES[name].share / whole)) for name in self.families}


REGIMES = {
    "main": Regime("θ_0 at its validation optimum", tuple(FAMILIES), None),
    "weak": Regime("θ_0 after one epoch of SFT, as in the paper", tuple(FAMILIES), 1),
    "long": Regime("long answers only, θ_0 at its validation optimum", ("story", "sums"), None, 0.5),
}


@dataclass(frozen=True)
class Arm:
    """One way to play. What is not said is as published."""

    title: str
    loss: str = "sigmoid"
    beta: float | Literal["auto"] = 0.1
    search: bool = False  # θ_t + γ(θ_{t+1} − θ_t), γ by the validation rows
    exact: bool = False  # γ by how often a sample would be the human answer, else by its NLL
    samples: int = 1  # answers a train prompt
    carry: bool = True  # the pairs of the iteration before are trained on, too
    decay: bool = False  # a fifth of the learning rate from iteration 2 on, as the paper has it in its last ones
    frozen: bool = False  # the opponent is θ_0 in every iteration: its answers, and it as reference
    history: float = 0.0  # weight of the answers of θ_t preferred over those of θ_{t−1}

    def training(self, rate: float, iteration: int, seed: int) -> TrainingSettings:
        """The recipe's training settings of an iteration."""
        keys: dict[str, Any] = {"loss": self.loss, "beta": self.beta, "seed": 1000 * seed + iteration}
        keys["history_weight"] = self.history
        keys["learning_rate"] = rate * (0.2 if self.decay and iteration >= 2 else 1.0)
        return TrainingSettings(**keys, epochs=2, pairs_per_step=64, tokens_per_micro_batch=TOKENS, precision="fp32")


_DEFAULT = Arm("default candidate: β auto, line search", beta="auto", search=True)
DEFAULT = "auto_search"
ARMS = {
    "published": Arm("SPIN as published: sigmoid, β 0.1"),
    "auto": Arm("β auto (β only)", beta="auto"),
    DEFAULT: _DEFAULT,
    "search": Arm("line search only, β 0.1", search=True),
    "auto_exact": replace(_DEFAULT, title="β auto, line search by exact samples", exact=True),
    "exact": Arm("line search by exact samples, β 0.1", search=True, exact=True),
    "auto_search_4": replace(_DEFAULT, title="default candidate with 4 samples a prompt", samples=4),
    "nce": Arm("nce, β auto, identical pairs kept", loss="nce", beta="auto"),
    "nce_search": Arm("nce, β auto, line search", loss="nce", beta="auto", search=True),
    "no_carry": replace(_DEFAULT, title="default candidate, no carry-over", carry=False),
    "frozen": replace(_DEFAULT, title="default candidate, opponent frozen at θ_0", frozen=True),
    "history": replace(_DEFAULT, title="default candidate, history pairs of weight 0.5", history=0.5),
    "decay": Arm("learning-rate decay only, β 0.1", decay=True),
}
TUNED_ON = ("published", "auto")  # whose mean decides the learning rate of all arms
