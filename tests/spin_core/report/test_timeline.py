"""When stages ran, from manifests alone: what waited, what was found done, what was made for another campaign."""

import time
from pathlib import Path
from typing import Any

import pytest

from spin_core.campaign.ledger import Turn
from spin_core.report import timeline as told
from spin_core.report.timeline import duration, timeline
from spin_core.store import Ref, Spec, Store


def stage(store: Store, kind: str, name: str, begun: float, worked: float, ended: float, **facts: Any) -> Ref:
    """A stage of that span."""
    facts |= {"ended": ended, "seconds": ended - begun, "started": worked}
    return store.build(Spec(kind, 1, {"name": name}), lambda out: facts)


def test_bars_are_where_the_work_was(tmp_path: Path) -> None:
    """A night between two stages is not drawn to scale: else nothing else could be seen."""
    store, night = Store(tmp_path), 8 * 3600.0
    shards = tuple(stage(store, "shard", f"{i}", 0.0, 30.0, 60.0 + i, tokens=100, rows=9) for i in range(2))
    made = {"train_shards": shards, "model": stage(store, "model", "", night, night, night + 61, steps=7, pairs_per_s=2.0, beta=0.1)}
    (one,) = timeline([Turn(0, {}, made, {}, 0)], "c")
    answers, train = one.bars
    assert (answers.ran.name, train.ran.name) == ("θ_0 answers train prompts", "train")
    assert (answers.ran.says, train.ran.says) == ("200 tokens in 2 shards, 6 a second", "7 steps, 2.00 pairs a second, β 0.1")
    assert answers.left == 0
    assert answers.wait == pytest.approx(0.97 * 30 / 122)
    assert train.left == pytest.approx(answers.wait + answers.work + 0.03)
    assert train.left + train.work == pytest.approx(1.0)
    assert (one.seconds, one.pauses) == (122, night - 61)


def test_what_was_not_made_here_has_no_bar(tmp_path: Path) -> None:
    store = Store(tmp_path)
    prompts = stage(store, "prompts", "", 0.0, 0.0, 5.0, campaign="other", message="9 rows")
    encoded = stage(store, "encoded", "", 5.0, 5.0, 6.0, campaign="c")
    turns = [Turn(t, {}, {"prompts": prompts, "encoded": encoded, "opponent": encoded}, {}, 0) for t in (0, 1)]
    first, second = timeline(turns, "c")
    assert [bar.ran.name for bar in first.bars] == ["tokenise"]
    assert [(ran.name, ran.campaign) for ran in first.shared] == [("read the data", "other")]
    assert (second.bars, list(second.found)) == ([], ["read the data", "tokenise"])


def test_a_manifest_of_whole_seconds_has_its_files_time(tmp_path: Path) -> None:
    """Stages of half a second would change places; a copied home has only the seconds."""
    ref = Store(tmp_path).build(Spec("prompts", 1, {}), lambda out: {"seconds": 0.5, "waited": 0.2})
    begun, worked, ended = told._span(ref.manifest, (ref.path / "MANIFEST.json").stat().st_mtime)
    assert abs(ended - time.time()) < 60
    assert ended % 1 != 0
    assert (ended - begun, worked - begun) == (pytest.approx(0.5), pytest.approx(0.2))
    assert told._span(ref.manifest, ended + 86400)[2] % 1 == 0


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(s) for s in (0.52, 42.4, 99.4, 185, 7800)] == ["0.5 s", "42 s", "99 s", "3:05 min", "2:10 h"]
