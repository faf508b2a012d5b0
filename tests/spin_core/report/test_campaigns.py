"""The campaigns of a home at a glance."""

from pathlib import Path

import pytest

from spin_core.campaign.ledger import Ledger
from spin_core.campaign.workspace import campaign_lock
from spin_core.recipe import Recipe
from spin_core.report.campaigns import rows
from spin_core.store import Store
from tests.spin_core.report.test_table import play
from tests.terminal import spinflow

RECIPE = Recipe.model_validate({"name": "c", "model": {"name": "/m"}, "data": {"name": "demo"}, "iterations": [{}, {}, {}]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    Ledger(store, "c").pinned(RECIPE)
    play(store, 0, None)
    play(store, 1, None, won=-0.3)
    return store


def test_a_row_a_campaign(store: Store) -> None:
    branched, broken = Ledger(store, "branched"), Ledger(store, "broken")
    branched.pin_as(Ledger(store, "c"))
    broken.path.parent.mkdir()
    broken.path.write_text("{")
    with campaign_lock(store, "c", lambda holder: None):
        found = {row["campaign"]: row for row in rows(store)}
    assert found["c"] | {"state": ""} == {
        "campaign": "c",
        "played": "2 of 3",
        "best": "θ_1",
        "figure": "checks 50.0% ±10.0",
        "changed": "just now",
        "state": "",
        "size": "0.0 GB",
    }
    assert found["c"]["state"].startswith("running in process ")
    assert found["branched"]["state"] == "not begun"
    assert found["broken"]["state"].startswith("cannot be read: ")
    done = spinflow("ls", "--home", str(store.home))
    assert (done.status, done.error) == (0, "")
    assert "checks 50.0% ±10.0" in done.out


def test_a_recipe_is_known_by_its_campaigns_name(store: Store) -> None:
    assert Ledger(store, "c").recipe() == RECIPE
    old = Ledger(store, "old")  # of a release whose ledgers had no recipes
    play(store, 0, None)
    old.path.parent.mkdir()
    text = Ledger(store, "c").path.read_text()
    old.path.write_text(text.replace('"recipe": {"name"', '"was": {"name"'))
    assert isinstance(old.recipe(), Recipe)


def test_an_empty_home_is_one_line(tmp_path: Path) -> None:
    done = spinflow("ls", "--home", str(tmp_path))
    assert (done.status, done.error) == (2, f"error: {tmp_path} has no campaign; give --home, or begin one with `spinflow run`\n")
    assert spinflow("gc", "--home", str(tmp_path)).status == 2
