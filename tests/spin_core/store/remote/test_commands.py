"""What people ask of a home in an object store, from a machine that has never seen it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from spin_core.campaign import keep
from spin_core.campaign.ledger import Ledger
from spin_core.inspect.holdings import collect
from spin_core.report import campaigns
from spin_core.report.page.write import write_page
from spin_core.store import Spec, Store
from tests.campaigns import Made
from tests.s3 import S3
from tests.spin_core.store.remote.conftest import Machine


def gc(store: Store, delete: bool = False) -> str:
    out = io.StringIO()
    collect(store, delete, Console(file=out, width=200))
    return out.getvalue()


def test_a_played_campaign_from_another_machine(machine: Machine, server: S3) -> None:
    """Table, list and page: the same as where it was played."""
    made = Made(machine("a"), rows=6, turns=2)
    page = write_page(made.store, made.recipe).read_text()
    there = machine("b")
    assert [row["campaign"] for row in campaigns.rows(there)] == ["made"]
    assert [turn.metrics for turn in Ledger(there, "made").whole_turns()] == [turn.metrics for turn in Ledger(made.store, "made").turns()]
    again = write_page(machine("c"), made.recipe).read_text()
    assert len(again) == pytest.approx(len(page), rel=0.02)
    assert there.bucket is not None
    assert there.bucket.get("campaigns/made/report.html") is not None


def test_what_nobody_needs_goes_and_what_is_at_work_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, `gc` takes what a run on another machine is just making, or a bucket grows for ever."""
    monkeypatch.setattr(keep, "_YOUNG_S", -1.0)
    made = Made(machine("a"), rows=6, turns=1)
    worker, other = made.store, machine("b")
    worker.build(Spec("shard", 1, {"n": "given up"}), lambda out: (out / "data").write_bytes(b"x" * 5000) and None)
    kept = len(worker.all()) - 1

    def half(out: Path) -> None:
        (out / "data").write_bytes(b"y" * 3000)
        assert worker.shelf is not None
        worker.shelf.send("shard", spec.digest, out)  # as a node that has sent, and whose run has not committed
        said = gc(machine("c"), delete=True)
        assert "is building something" in said
        assert "not finished" not in said
        raise RuntimeError

    spec = Spec("shard", 1, {"n": "at work"})
    with pytest.raises(RuntimeError):
        worker.build(spec, half)
    said = gc(other)
    assert "8.0 kB are needed by no campaign" in said, said
    assert "no manifest has it" in said
    gc(other, delete=True)
    assert len(machine("d").all()) == kept
    assert "nothing to remove" in gc(machine("d"))
    assert len(Ledger(machine("d"), "made").whole_turns()) == 1


def test_claims_of_the_long_dead_go(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from spin_core.store.remote import shelf

    store = machine("a")
    assert store.bucket is not None
    Made(store, rows=2, turns=1)
    store.bucket.put("sessions/gone", b'{"beat": 0}')
    assert "its process is gone" not in gc(machine("b"))
    monkeypatch.setattr(shelf, "_LONG_AGO_S", -1.0)
    assert "its process is gone" in gc(machine("b"))
    gc(machine("b"), delete=True)
    assert not [*store.bucket.list("sessions")]
