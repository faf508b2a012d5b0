"""What `spinflow gc` may remove: nothing that a campaign needs, is about to need, or is making."""

import io
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spin_core.campaign.keep import look
from spin_core.campaign.ledger import Ledger
from spin_core.campaign.survey import survey
from spin_core.campaign.turn import TurnStages
from spin_core.campaign.walk import Played, walk
from spin_core.campaign.workspace import campaign_lock, cleaning, link
from spin_core.inspect.holdings import collect
from spin_core.runtime.errors import BadInput
from spin_core.store import MANIFEST, Spec, Store
from spin_core.store.locks import locked
from tests.spin_core.campaign.test_survey import Builds, play, recipe

BOTH = [{}, {}]


@pytest.fixture(scope="module")
def played(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of two iterations, played with one β and then from the first iteration on with another."""
    store = Store(tmp_path_factory.mktemp("played"))
    for beta in (0.1, 0.2):
        found = recipe(tiny_model, iterations=BOTH, training={"beta": beta})
        Ledger(store, "c").pinned(found)
        play(store, found, play(store, found))
    return store.home


@pytest.fixture
def store(played: Path, tmp_path: Path) -> Store:
    """A copy of it, all of which was made a while ago."""
    store = Store(Path(shutil.copytree(played, tmp_path / "home", symlinks=True)))
    age(store)
    return store


def age(store: Store) -> None:
    for file in store.home.glob(f"artifacts/*/*/{MANIFEST}"):
        os.utime(file, (time.time() - 7200, time.time() - 7200))


def made(store: Store, *params: str, parents: tuple[Any, ...] = ()) -> tuple[str, str]:
    ref = store.build(Spec("model", 1, {"params": params}, parents), lambda out: (out / "weights").write_bytes(b"w" * 1000) and None)
    age(store)
    return ref.kind, ref.digest


def swept(store: Store, delete: bool = True) -> tuple[int, str]:
    out = io.StringIO()
    return collect(store, delete, Console(file=out, width=200)), out.getvalue()


def there(store: Store) -> set[tuple[str, str]]:
    return {(path.parent.parent.name, path.parent.name) for path in store.home.glob(f"artifacts/*/*/{MANIFEST}")}


def test_what_no_ledger_names_goes_and_the_campaign_has_all_it_had(store: Store, tiny_model: Path) -> None:
    """The models of the β that was given up are what fills a disk."""
    found = recipe(tiny_model, iterations=BOTH, training={"beta": 0.2})
    before, free = there(store), set(look(store).free())
    assert {kind for kind, _ in free} >= {"model", "evaluation", "reference"}
    size, said = swept(store, delete=False)
    assert there(store) == before
    assert f"{size / 1e3:.1f} kB are needed by no campaign; `spinflow gc --delete` removes them" in said
    gone, said = swept(store)
    assert gone == size
    assert there(store) == before - free
    assert all(line.done for line in survey(store, found))
    assert swept(store)[1].endswith("nothing to remove: all of it is needed\n")
    assert list((store.home / ".staging").iterdir()) == []


def test_an_iteration_that_is_not_at_its_end_is_gone_on_with(store: Store, tiny_model: Path) -> None:
    """Its shards are in no ledger yet: a night's sampling. Nor are a killed training's checkpoints an artifact."""
    swept(store)
    found = recipe(tiny_model, iterations=[*BOTH, {}], training={"beta": 0.2})
    Ledger(store, "c").pinned(found)
    before = there(store)

    class Killed(Builds):
        def do(self, name: str, stage: Any) -> Any:
            if name == "model" and stage.label.startswith("iter-2"):
                (store.work_dir(stage.spec()) / "checkpoint").write_text("x")
                raise InterruptedError
            return super().do(name, stage)

    played = Played()
    for iteration in range(2):
        played = walk(TurnStages.of(found, iteration, store.home), Builds(store, nll=0.1), played, iteration)
    with pytest.raises(InterruptedError):
        walk(TurnStages.of(found, 2, store.home), Killed(store), played, 2)
    age(store)
    assert there(store) > before
    (store.home / "work" / "model-0123").mkdir()
    (store.home / "corrupt" / "model-9-9").mkdir(parents=True)
    (store.home / ".staging" / "pairs-9").mkdir(parents=True)
    kept = there(store)
    said = swept(store)[1]
    assert there(store) == kept
    for left in ("work/model-0123", "corrupt/model-9-9", ".staging/pairs-9"):
        assert f"left over: {left}" in said
        assert not (store.home / left).exists()
    assert len(list(store.home.glob("work/*/checkpoint"))) == 1


def test_a_running_campaign_loses_nothing(store: Store, tiny_model: Path) -> None:
    """It may come to look up what no ledger names: everything that is made from its model or its prompts stays; other things go."""
    free, other = set(look(store).free()), made(store, "unrelated")
    with campaign_lock(store, "c", lambda holder: None):
        said = swept(store)[1]
    assert f"campaign c is at work in process {os.getpid()} (campaign c)" in said
    assert free <= there(store)
    assert other not in there(store)
    swept(store)
    assert not free & there(store)


def test_a_campaign_that_has_just_begun_keeps_everything(store: Store) -> None:
    """It has its lock and no ledger yet, so nothing says what it is about to use."""
    before = there(store)
    with campaign_lock(store, "new", lambda holder: None):
        assert swept(store)[0] == 0
    assert there(store) == before


def test_what_another_command_builds_from_is_not_known(store: Store) -> None:
    before = there(store)
    for folder in (".staging", "work"):
        (store.home / folder / "pairs-77").mkdir(parents=True)
    with locked(store.lock("pairs-77"), lambda holder: None, "finetune"):
        said = swept(store)[1]
        assert "left over" not in said
    assert f"process {os.getpid()} (finetune) is building something" in said
    assert there(store) == before
    young = made(store, "young")
    (store.find(*young).path / MANIFEST).touch()
    swept(store)
    assert young in there(store)  # a check that is going on made it


def test_a_campaign_that_cannot_be_looked_at_keeps_what_may_be_its_own(store: Store) -> None:
    """Its data are on a disk that is not mounted today; a ledger that cannot be read names nothing at all."""
    free, path = set(look(store).free()), Ledger(store, "c").path
    text = path.read_text()
    path.write_text(text.replace('"name": "demo"', '"name": "/nowhere/rows.jsonl"'))
    assert "cannot be looked at: data.name: /nowhere/rows.jsonl" in swept(store)[1]
    path.write_text("{")
    assert "cannot be looked at: " in swept(store)[1]
    assert free <= there(store)


def test_the_best_model_stays(store: Store, tiny_model: Path) -> None:
    """The link is what people hand on."""
    link(store, "c", recipe(tiny_model).stop)
    best = made(store, "linked")
    (store.home / "campaigns" / "c" / "best").unlink()
    (store.home / "campaigns" / "c" / "best").symlink_to(store.find(*best).path)
    swept(store)
    assert best in there(store)


def test_a_campaign_begins_when_the_cleaning_has_ended(store: Store) -> None:
    """Else it could find an artifact a moment before it is removed."""
    began = threading.Event()
    told: list[str] = []

    def begin() -> None:
        with campaign_lock(store, "d", told.append):
            began.set()

    with cleaning(store):
        with pytest.raises(BadInput, match="is being cleaned by"), cleaning(store):
            pass
        thread = threading.Thread(target=begin)
        thread.start()
        assert not began.wait(1.0)
    thread.join(10.0)
    assert began.is_set()
    assert len(told) == 2


def test_a_home_without_artifacts_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no artifacts; give the --home of a run"):
        collect(Store(tmp_path), False, Console())
