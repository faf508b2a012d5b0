"""Claims between machines that share no disk: one at a time, taken over from the dead and never from the living."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spin_core.runtime.errors import SpinflowError
from spin_core.store import Spec
from spin_core.store.locks import nobody
from spin_core.store.remote import claims as rules
from spin_core.store.remote.claims import Claims
from tests.s3 import S3
from tests.spin_core.store.remote.conftest import Machine

NAME = "locks/thing"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "EXPIRES_S", 1.5)
    monkeypatch.setattr(rules, "_BEAT_S", 0.3)
    monkeypatch.setattr(rules, "_POLL_S", 0.1)


def claims(machine: Machine, name: str) -> Claims:
    found = machine(name)._claims
    assert found is not None
    return found


def test_one_holds_it_and_the_other_waits_and_is_told(machine: Machine) -> None:
    """Longer than a claim lives without a heartbeat."""
    a, b = claims(machine, "a"), claims(machine, "b")
    order, told = list[str](), list[str]()

    def second() -> None:
        with b.held(NAME, told.append, "campaign b"):
            order.append("b")

    with a.held(NAME, nobody, "campaign a"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(3.0)
        with b.held_if_free(NAME) as free:
            assert not free
        order.append("a")
    thread.join()
    assert order == ["a", "b"]
    assert len(told) == 2
    assert "(campaign a)" in told[0]
    assert told[1] == ""
    assert not [*a._bucket.list("")], "nothing stays behind"


def dead(bucket_claims: Claims) -> None:
    """As a machine without power."""
    bucket_claims._beating.set()


def test_a_dead_holder_is_replaced_once_its_session_is_still(machine: Machine) -> None:
    a, b = claims(machine, "a"), claims(machine, "b")
    lost = a.held(NAME, nobody)
    lost.__enter__()
    dead(a)
    begun = time.monotonic()
    with b.held(NAME, nobody):
        assert 1.5 < time.monotonic() - begun < 5.0
        time.sleep(1.0)
        lost.__exit__(None, None, None)  # it comes back, late, and must not give away what is b's now
        with claims(machine, "c").held_if_free(NAME) as free:
            assert not free


def test_what_a_dead_process_of_the_same_machine_held_is_free_at_once(machine: Machine) -> None:
    """After a kill, the same command goes on; it holds the lock file, so nobody on this machine has the claim."""
    a, again = claims(machine, "a"), claims(machine, "a")
    a.held(NAME, nobody).__enter__()
    dead(a)
    begun = time.monotonic()
    with again.held(NAME, lambda holder: pytest.fail(f"waits for {holder}")):
        assert time.monotonic() - begun < 1.0
    assert not [*again._bucket.list("")], "its session has gone with it"


def test_a_holder_that_cannot_reach_the_store_for_a_while_keeps_it(machine: Machine, server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "EXPIRES_S", 6.0)
    a, b = claims(machine, "a"), claims(machine, "b")
    with a.held(NAME, nobody):
        server.fault = lambda method, name: "500" if name.startswith("sessions") and method == "PUT" else ""
        time.sleep(2.0)
        server.fault = lambda method, name: ""
        with b.held_if_free(NAME) as free:
            assert not free
        time.sleep(2.0)
        with b.held_if_free(NAME) as free:
            assert not free
        assert b.holder(NAME).startswith("process ")
    assert server.failed["500"]


def test_a_run_that_was_replaced_cannot_write_the_ledger(machine: Machine) -> None:
    """Cut off, thought dead, back again: of two ledgers one would be lost."""
    a, b = machine("a"), machine("b")
    for store in (a, b):
        file = store.campaign_folder("c") / "campaign.json"
        store.pull(file)
        file.parent.mkdir(parents=True, exist_ok=True)
    (b.campaign_folder("c") / "campaign.json").write_text("{}")
    b.push(b.campaign_folder("c") / "campaign.json")
    (a.campaign_folder("c") / "campaign.json").write_text('{"of": "a"}')
    with pytest.raises(SpinflowError, match="by another run meanwhile"):
        a.push(a.campaign_folder("c") / "campaign.json")
    fresh = machine("c")
    fresh.pull(fresh.campaign_folder("c") / "campaign.json")
    assert (fresh.campaign_folder("c") / "campaign.json").read_text() == "{}"
    assert fresh.campaigns() == ["c"]


def test_of_several_machines_one_builds(machine: Machine) -> None:
    built = list[str]()

    def builder(name: str) -> Callable[[Path], None]:
        def write(out: Path) -> None:
            built.append(name)
            time.sleep(0.5)
            (out / "data").write_text(name)

        return write

    stores = [machine(name) for name in "abcd"]
    made = [threading.Thread(target=lambda store=store: store.build(Spec("thing", 1, {}), builder("x"))) for store in stores]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()
    assert built == ["x"]
    assert {(store.ref(Spec("thing", 1, {})).path / "data").read_text() for store in stores} == {"x"}
