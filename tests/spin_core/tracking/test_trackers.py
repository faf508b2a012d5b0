"""One run a campaign: steps are counted on over its iterations, evaluations stand at t of θ_t, each told once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spin_core.report import track as sending
from spin_core.report.results import played_turns
from spin_core.report.track import track
from spin_core.store import Store
from spin_core.tracking import trackers
from spin_core.tracking.callback import Tracked
from spin_core.tracking.job import _work
from spin_core.tracking.trackers import Campaign, Trackers
from tests.campaigns import Made


class Recorded:
    """A tracker that remembers; one whose name is in `broken` fails there."""

    said: list[tuple[int, dict[str, float]]]
    broken = ""

    def __init__(self, campaign: Campaign, again_from: int | None) -> None:
        if self.broken == "open":
            raise RuntimeError("no network")

    def log(self, figures: dict[str, float], step: int) -> None:
        if self.broken == "log":
            raise RuntimeError("no network")
        self.said.append((step, dict(figures)))

    def close(self) -> None:
        """Nothing waits."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    kind = type("Recorded", (Recorded,), {"said": []})
    monkeypatch.setitem(trackers.KINDS, "wandb", kind)  # type: ignore[arg-type]
    return kind


def train(campaign: Campaign, names: list[str], first: int, steps: range) -> None:
    """What the trainer tells its callbacks."""
    tracked = Tracked(names, campaign, first)
    tracked.on_train_begin(None, SimpleNamespace(is_world_process_zero=True, global_step=steps.start - 1), None)
    for step in steps:
        logs = {"learning_rate": 1e-6, "loss": 1.0 / step, "grad_norm": float("nan")}
        tracked.on_log(None, SimpleNamespace(global_step=step), None, logs=logs)
    tracked.on_train_end(None, None, None)


def test_steps_are_counted_on(recorded: type[Recorded], tmp_path: Path) -> None:
    campaign = Campaign("c", str(tmp_path))
    train(campaign, ["wandb"], 0, range(1, 4))
    train(campaign, ["wandb"], 3, range(1, 3))
    assert [step for step, _ in recorded.said] == [1, 2, 3, 4, 5]
    assert set(recorded.said[0][1]) == {"training/learning_rate", "training/loss"}  # a NaN is none


@pytest.mark.parametrize("where", ["open", "log"])
def test_a_tracker_that_fails_ends_nothing(
    recorded: type[Recorded], where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.broken = where
    train(Campaign("c", str(tmp_path)), ["wandb"], 0, range(1, 4))
    assert capsys.readouterr().out.count("wandb fails and is left out from here: RuntimeError: no network") == 1


def test_evaluations_are_sent_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The report task runs again in every run of a campaign that is done."""
    jobs: list[dict[str, Any]] = []
    monkeypatch.setattr(sending, "run_job", lambda module, job, log: jobs.append(job))
    made = Made(Store(tmp_path), 8, 2)
    recipe = made.recipe.model_copy(update={"training": made.recipe.training.model_copy(update={"report_to": ["wandb"]})})
    turns = played_turns(made.store, recipe)
    for known in (turns[:1], turns, turns):
        track(made.store, recipe, known)
    assert [[player for player, _ in job["evaluations"]] for job in jobs] == [[0, 1], [2]]
    figures = jobs[0]["evaluations"][1][1]
    assert figures["evaluation/checks"] == turns[0].metrics["splits"]["test"]["after"]["checks"]["value"]
    assert {"evaluation/gained/checks", "evaluation/game", "evaluation/diagnostics/margin"} <= set(figures)


def test_tensorboard_has_one_run_a_campaign(tmp_path: Path) -> None:
    """Two trainings, the second killed and continued, and the evaluations in between."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    campaign = Campaign("c", str(tmp_path))
    train(campaign, ["tensorboard"], 0, range(1, 4))
    _work(
        {
            "names": ["tensorboard"],
            "campaign": campaign.as_dict(),
            "evaluations": [(0, {"evaluation/checks": 0.2}), (1, {"evaluation/checks": 0.3})],
        }
    )
    train(campaign, ["tensorboard"], 3, range(1, 5))
    train(campaign, ["tensorboard"], 3, range(3, 6))  # from the checkpoint of step 2
    folder = tmp_path / "logs" / "tensorboard"
    assert [found.name for found in folder.iterdir()] == ["c"]
    events = EventAccumulator(str(folder / "c"))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("evaluation/checks")] == [(0, 0.2), (1, 0.3)]


def test_the_id_is_the_campaigns() -> None:
    """The same in every iteration; not that of another person's campaign of the same name."""
    one = Campaign("my run", "/a").id
    assert one == Campaign("my run", "/a").id != Campaign("my run", "/b").id
    assert Campaign("my run", "/a", "s3://b").id == Campaign("my run", "/b", "s3://b").id, "each machine has another cache"
    assert one.startswith("my-run-")


def test_nothing_is_opened_where_nothing_is_named(tmp_path: Path) -> None:
    Trackers([], Campaign("c", str(tmp_path))).close()
    assert list(tmp_path.iterdir()) == []
