"""The child that sends evaluations to the trackers."""

from __future__ import annotations

from typing import Any

from spin_core.runtime.process import job_main
from spin_core.tracking.trackers import Campaign, Trackers


def _work(job: dict[str, Any]) -> None:
    trackers = Trackers(job["names"], Campaign(**job["campaign"]))
    for player, figures in job["evaluations"]:
        trackers.log(figures, player)
    trackers.close()


if __name__ == "__main__":
    job_main(_work)
