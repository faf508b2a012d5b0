"""A child without torch: takes files as a scorer takes shards, says its place as a trainer has one, or fails as it is told to."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from spin_core.runtime.errors import BadInput
from spin_core.runtime.process import job_main
from spin_core.runtime.progress import Progress, print_event
from spin_core.store.shares import untaken


def _work(job: dict[str, Any]) -> None:
    if job.get("wrong") == job["part"]:
        raise BadInput("this cannot be done")
    if "files" in job:
        for done, file in enumerate(untaken(map(Path, job["files"])), 1):
            time.sleep(job["seconds"])
            with Path(job["journal"]).open("a") as journal:
                journal.write(f"{file.name} {os.getpid()}\n")
            file.write_text(str(job["part"]))
            print_event(Progress("light", done, len(job["files"])))
    else:
        print(f"here is {job['part']}", flush=True)
        Path(job["folder"], f"rank-{job['part']}").write_text(sys._xoptions["place"] + f" {os.environ['CUDA_VISIBLE_DEVICES']}")
        time.sleep(job["seconds"])


if __name__ == "__main__":
    job_main(_work)
