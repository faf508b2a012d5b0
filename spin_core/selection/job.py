"""The child that scores candidates on the validation rows, one of them a device, and the one that writes what was taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.contracts.tables import id_lists
from spin_core.runtime.process import job_main
from spin_core.runtime.progress import Teller
from spin_core.scoring.job import Rows, Scorer
from spin_core.selection.choice import Candidate
from spin_core.selection.weights import scored_folder, write_player
from spin_core.store.files import whole
from spin_core.store.shares import untaken


def _work(job: dict[str, Any]) -> None:
    if "take" in job:
        write_player(job, Candidate(**job["take"]), Path(job["out"]))
    else:
        _score(job)


def _score(job: dict[str, Any]) -> None:
    """Takes one candidate after the other that no other child has taken."""
    rows = _read(Path(job["rows"]))
    teller = Teller("choosing", job["total"] * len(rows), "rows", 0 if job["part"] else job["done"] * len(rows))
    found = {Path(entry["file"]): Candidate(entry["epoch"], entry["gamma"]) for entry in job["candidates"]}
    for target in untaken(found, job.get("shared", "")):
        work = target.with_suffix("")
        folder = scored_folder(job, found[target], work)
        logps = _logps(job | {"model": str(folder)}, rows, teller)
        shutil.rmtree(work, ignore_errors=True)
        with whole(target) as part:
            pq.write_table(pa.table({"real_logp": pa.array(logps, pa.float64())}), part)


def _read(file: Path) -> Rows:
    """The rows with the human answer on both sides: packed, that is a tree of one branch, and the other side costs nothing."""
    table = pq.read_table(file, columns=["prompt_ids", "real_ids"])
    prompts, answers = (id_lists(table[name]) for name in table.column_names)
    return list(zip(prompts, answers, answers, strict=True))


def _logps(job: dict[str, Any], rows: Rows, teller: Teller) -> list[float]:
    """Summed log-probs of the human answers under one model, nats; the model goes with the call."""
    scorer, logps = Scorer(job, None, rows), [0.0] * len(rows)
    for batch in scorer.batches(rows):
        for index, logp in zip(batch, scorer.score([rows[i] for i in batch])[0], strict=True):
            logps[index] = logp
        teller.add(len(batch))
    return logps


if __name__ == "__main__":
    job_main(_work)
