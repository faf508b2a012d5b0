"""The stage `evaluation`: θ_t and θ_{t+1} side by side on held-out rows, the self-play game between them, and diagnostics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from spin_core.contracts.rows import HELD_OUT, PAIRS_OF, SCORES, SCORES_OF
from spin_core.contracts.tables import read_rows, texts_by_row, write_rows
from spin_core.evaluation.diagnostics import Held, diagnose
from spin_core.evaluation.duels import duel
from spin_core.evaluation.figures import alone, gained, judged_on, kinds
from spin_core.evaluation.intervals import interval
from spin_core.recipe import EvaluationSettings
from spin_core.recipe.identity import identity
from spin_core.runtime.launcher import Launcher
from spin_core.scoring.beta import Surprise
from spin_core.scoring.scores import read_scores
from spin_core.store import Ref, Spec

STAGE_VERSION = 5
_COLUMNS = ["row_id", "real", "real_ids", "generated_ids"]
SAMPLES = pa.schema([(name, pa.string()) for name in ("prompt", "real", "before", "after")])
_EVALUATORS = {"evaluators", "custom", "samples", "greedy", "harness", "judge"}  # they count by what they made


@dataclass(frozen=True)
class Side:
    """What is known of one player."""

    judged: tuple[Ref, ...]
    scored: Ref  # the turn's held-out pairs under it
    answers: tuple[Ref, ...]  # its first answers to the test rows


@dataclass(frozen=True)
class _Split:
    """What was found on one split."""

    rows: list[dict[str, Any]]  # the pairs
    held: Held
    figures: dict[str, Any]
    kinds: dict[str, Any]  # what each figure is


@dataclass(frozen=True)
class Evaluate:
    """Compares θ_t and θ_{t+1} on the held-out rows; writes metrics.json and samples.parquet.

    Figures only: no model, no device. The game is the paper's: the main player must tell the human answer from the opponent's.
    A pair counts as won where the implicit reward β·(log p_new − log p_old) of the human answer is the larger one.
    """

    settings: EvaluationSettings
    iteration: int
    beta: float | Literal["auto"]
    pairs: Ref
    reference: Ref  # of the training: what `beta: auto` is
    start: tuple[Ref, ...]  # what θ_0 was judged to be
    before: Side
    after: Side
    duels: tuple[Ref, ...] = ()  # by a judge: against the opponent, and against θ_0 where that is another

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"iter-{self.iteration} · evaluate"

    def spec(self) -> Spec:
        """β, what is shown, and what is compared."""
        shown = identity(self.settings, without=_EVALUATORS)
        params = {"iteration": self.iteration, "training": {"beta": self.beta}, "evaluation": shown}
        parents = [self.pairs, self.reference, *self.start]
        parents += [ref for side in (self.before, self.after) for ref in (*side.judged, side.scored, *side.answers)]
        return Spec("evaluation", STAGE_VERSION, params, tuple(dict.fromkeys((*parents, *self.duels))))

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Computes the figures here; what is out of bounds is told."""
        splits = {split: self._split(split) for split in HELD_OUT if (self.pairs.path / PAIRS_OF[split]).exists()}
        diagnosis = diagnose(splits["test"].held)
        metrics = {
            "iteration": self.iteration,
            "figures": {name: kind for split in splits.values() for name, kind in split.kinds.items()},
            "splits": {name: split.figures for name, split in splits.items()},
            "diagnostics": asdict(diagnosis),
        }
        (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
        old, new = (texts_by_row(shard.path for shard in side.answers) for side in (self.before, self.after))
        shown = [_sample(row, old, new) for row in splits["test"].rows if row["row_id"] in old and row["row_id"] in new]
        write_rows(out / "samples.parquet", shown[: self.settings.sample_prompts], SAMPLES)
        return {"warnings": list(diagnosis.warnings.values())}

    def _split(self, split: str) -> _Split:
        start, before, after = (judged_on(split, judged) for judged in (self.start, self.before.judged, self.after.judged))
        found: dict[str, Any] = {"before": alone(before), "after": alone(after)}
        found |= {"gained": gained(before, after), "over_start": gained(start, after)}
        rows, held = self._held(split, found)
        margins = Surprise.read(self.reference.path).resolve(self.beta) * (held.gained_real_D - held.gained_generated_D)
        found["game"] = {"won": interval((margins > 0).astype(np.float64)).as_dict(), "margin": interval(margins).as_dict()}
        what = kinds(before, after)
        if self.duels:
            found["judge"] = {against: duel(ref.path, split) for against, ref in zip(("opponent", "start"), self.duels, strict=False)}
            won = found["judge"]["opponent"]["won"]
            found["gained"]["judge"] = {name: None if won[name] is None else won[name] - 0.5 for name in ("value", "low", "high")}
            found["gained"]["judge"]["prompts"] = won["prompts"]
            what["judge"] = {"unit": "share", "better": "higher"}
        return _Split(rows, held, found, what)

    def _held(self, split: str, found: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Held]:
        file = self.pairs.path / PAIRS_OF[split]
        rows = read_rows(file, _COLUMNS)
        before, after = (read_scores(side.scored.path / SCORES_OF[split], file) for side in (self.before, self.after))
        differ = np.array([row["real_ids"] != row["generated_ids"] for row in rows], dtype=bool)
        real, generated = ((after[name].to_numpy() - before[name].to_numpy())[differ] for name in SCORES.names)
        players = ({name: figure["value"] for name, figure in found[who].items()} for who in ("before", "after"))
        return rows, Held(real, generated, -before["real_logp"].to_numpy()[differ], len(rows), *players)


def _sample(row: dict[str, Any], old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    number = row["row_id"]
    return {"prompt": row["real"][-2]["content"], "real": row["real"][-1]["content"], "before": old[number], "after": new[number]}
