"""The stage `evaluation`: θ_t and θ_{t+1} on held-out rows: checks, NLL of the human answers, the self-play game, answer lengths."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from spin_core.contracts.checks import check_answer
from spin_core.contracts.rows import SCORES, SCORES_OF, TEST_FILE
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.evaluation.diagnostics import Held, diagnose
from spin_core.recipe import EvaluationSettings
from spin_core.recipe.identity import identity
from spin_core.runtime.launcher import Launcher
from spin_core.scoring.beta import Surprise
from spin_core.scoring.scores import read_scores
from spin_core.store import Ref, Spec

STAGE_VERSION = 3
_COLUMNS = ["row_id", "real", "check", "real_ids", "generated_ids"]
SAMPLES = pa.schema([(name, pa.string()) for name in ("prompt", "real", "before", "after")])


@dataclass(frozen=True)
class Evaluate:
    """Compares θ_t (`before`) and θ_{t+1} (`scored`) on the held-out rows; writes metrics.json and samples.parquet.

    Figures only: no model, no device. The game is the paper's: the main player must tell the human answer from the opponent's.
    A pair counts as won where the implicit reward β·(log p_new − log p_old) of the human answer is the larger one.
    """

    settings: EvaluationSettings
    iteration: int
    beta: float | Literal["auto"]
    pairs: Ref
    reference: Ref  # of the training: what `beta: auto` is
    before: Ref  # the same, but where training did not start from θ_t
    scored: Ref
    old_answers: tuple[Ref, ...]
    new_answers: tuple[Ref, ...]

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"iter-{self.iteration} · evaluate"

    def spec(self) -> Spec:
        """β, what is shown, and what is compared."""
        params = {"iteration": self.iteration, "training": {"beta": self.beta}, "evaluation": identity(self.settings)}
        scores = (self.reference, *([self.before] if self.before != self.reference else []), self.scored)
        return Spec("evaluation", STAGE_VERSION, params, (self.pairs, *scores, *self.old_answers, *self.new_answers))

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Computes the figures here; what is out of bounds is told."""
        file = self.pairs.path / TEST_FILE
        rows = read_rows(file, _COLUMNS)
        before, after = (read_scores(ref.path / SCORES_OF["test"], file) for ref in (self.before, self.scored))
        old_by_id, new_by_id = _answers(self.old_answers), _answers(self.new_answers)
        metrics: dict[str, Any] = {
            "iteration": self.iteration,
            "before": _player(rows, before, old_by_id),
            "after": _player(rows, after, new_by_id),
        }
        held = _held(rows, before, after, metrics)
        diagnosis = diagnose(held)
        metrics["game"] = _game(held, Surprise.read(self.reference.path).resolve(self.beta))
        metrics["diagnostics"] = asdict(diagnosis)
        (out / "metrics.json").write_text(json.dumps(metrics, indent=1))
        shown = [_sample(row, old_by_id, new_by_id) for row in rows if row["row_id"] in new_by_id]
        write_rows(out / "samples.parquet", shown[: self.settings.sample_prompts], SAMPLES)
        return {"warnings": list(diagnosis.warnings.values())}


def _answers(shards: tuple[Ref, ...]) -> dict[str, dict[str, Any]]:
    rows = (row for shard in shards for row in read_rows(shard.path / "shard.parquet"))
    return {row["row_id"]: row for row in rows if row["finish_reason"] in {"stop", "length"}}


def _player(rows: list[dict[str, Any]], scores: pa.Table, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How one model does alone: share of right answers, nats a token on the human answers, its own answers' lengths and entropy."""
    given = [answers[row["row_id"]] for row in rows if row["row_id"] in answers]
    checked = [(row, answers[row["row_id"]]) for row in rows if row["check"] and row["row_id"] in answers]
    right = [check_answer(json.loads(row["check"]), answer["generated"]) for row, answer in checked]
    return {
        "check_accuracy": sum(right) / len(right) if right else None,
        "nll": -sum(scores["real_logp"].to_pylist()) / sum(len(row["real_ids"]) for row in rows),
        "answer_tokens": sum(len(answer["generated_ids"]) for answer in given) / max(1, len(given)),
        "unfinished": sum(answer["finish_reason"] == "length" for answer in given) / max(1, len(given)),
        "entropy": _entropy(given),
        "rows": len(rows),
    }


def _entropy(answers: list[dict[str, Any]]) -> float | None:
    """Nats an answer, estimated by the log-probs with which the engine drew them; None where it gave none."""
    logps = [answer["logp"] for answer in answers if answer["logp"] is not None]
    return -sum(logps) / len(logps) if logps else None


def _held(rows: list[dict[str, Any]], before: pa.Table, after: pa.Table, metrics: dict[str, Any]) -> Held:
    differ = np.array([row["real_ids"] != row["generated_ids"] for row in rows], dtype=bool)
    real, generated = ((after[name].to_numpy() - before[name].to_numpy())[differ] for name in SCORES.names)
    return Held(real, generated, -before["real_logp"].to_numpy()[differ], len(rows), metrics["before"], metrics["after"])


def _game(held: Held, beta: float) -> dict[str, Any]:
    margins = beta * (held.gained_real_D - held.gained_generated_D)
    count = max(1, len(margins))
    return {"accuracy": float((margins > 0).sum()) / count, "margin": float(margins.sum()) / count, "pairs": len(margins)}


def _sample(row: dict[str, Any], old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {
        "prompt": row["real"][-2]["content"],
        "real": row["real"][-1]["content"],
        "before": old[row["row_id"]]["generated"],
        "after": new[row["row_id"]]["generated"],
    }
