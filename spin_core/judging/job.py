"""The child that judges one player by one evaluator."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import GREEDY, PAIRS_OF, SCORES_OF
from spin_core.contracts.tables import read_answers, read_rows
from spin_core.judging.evaluators import Answer, Row, evaluator
from spin_core.judging.figures import write_figures
from spin_core.runtime.process import job_main
from spin_core.scoring.scores import read_scores

_ANSWER = ["sample", "generated", "generated_ids", "logp"]


def _work(job: dict[str, Any]) -> None:
    found = evaluator(job["evaluator"])
    for split, shards in job["answers"].items():
        ids, rows = _scored(job, split) if found.needs == "scores" else _answered(job, split, shards)
        write_figures(Path(job["out"]), split, ids, found.judge(rows))


def _scored(job: dict[str, Any], split: str) -> tuple[list[str], list[Row]]:
    file = Path(job["pairs"]) / PAIRS_OF[split]
    scores = read_scores(Path(job["scored"]) / SCORES_OF[split], file)["real_logp"].to_pylist()
    pairs = read_rows(file, ["row_id", "real", "real_ids"])
    rows = [
        Row(pair["real"][:-1], pair["real"][-1]["content"], real_logp=logp, real_tokens=len(pair["real_ids"]))
        for pair, logp in zip(pairs, scores, strict=True)
    ]
    return [pair["row_id"] for pair in pairs], rows


def _answered(job: dict[str, Any], split: str, shards: Sequence[str]) -> tuple[list[str], list[Row]]:
    """The rows that were answered at least once, in the order of the prompts."""
    given: dict[str, list[dict[str, Any]]] = {}
    for answer in read_answers(map(Path, shards), _ANSWER):
        given.setdefault(answer["row_id"], []).append(answer)
    asked = [row for row in read_rows(Path(job["prompts"]) / f"{split}.parquet", ["row_id", "real", "check"]) if row["row_id"] in given]
    return [row["row_id"] for row in asked], [_row(row, given[row["row_id"]]) for row in asked]


def _row(row: dict[str, Any], given: Iterable[dict[str, Any]]) -> Row:
    check = json.loads(row["check"]) if row["check"] else None
    numbered = {
        answer["sample"] or 0: Answer(
            answer["generated"], len(answer["generated_ids"]), answer["finish_reason"] == "length", answer["logp"]
        )
        for answer in given
    }
    drawn = [numbered[number] for number in sorted(numbered) if number != GREEDY]
    return Row(row["real"][:-1], row["real"][-1]["content"], check, drawn, numbered.get(GREEDY))


if __name__ == "__main__":
    job_main(_work)
