"""Campaigns side by side, by hand."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from spin_core.campaign.ledger import Ledger
from spin_core.judging.evaluators import Figure
from spin_core.judging.figures import write_figures
from spin_core.recipe import Recipe
from spin_core.report.compare import compare, show
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref, Spec, Store


def campaign(store: Store, name: str, rows: list[str], right: list[float], won: float = 0.1) -> Recipe:
    """A campaign of one iteration whose θ_1 has these answers right; θ_0 has none."""
    recipe = Recipe.model_validate({"name": name, "model": {"name": "m"}, "data": {"name": "demo"}, "iterations": [{}]})
    gained = {"checks": {"value": won, "low": won, "high": won}}
    metrics = {"splits": {"test": {"gained": gained}}, "figures": {"checks": {"unit": "share", "better": "higher"}}}

    def made(what: str, values: list[float]) -> Ref:
        def write(out: Path) -> None:
            write_figures(out, "test", rows, {"checks": Figure(values, "share", "higher")})
            (out / "metrics.json").write_text(json.dumps(metrics))

        return store.build(Spec("judged", 1, {"name": name, "what": what}), write)

    found = {"start-judged-checks": made("start", [0.0] * len(rows)), "judged-checks": made("new", right)}
    found |= {"evaluation": made("evaluation", right), "model": made("model", right)}
    Ledger(store, name).note(0, recipe, found, 0)
    return recipe


def test_differences_are_of_the_rows_that_both_judged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = campaign(store, "one", ["a", "b", "c", "d"], [1.0, 0.0, 0.0, 0.0])
    two = campaign(store, "two", ["d", "c", "b", "x"], [1.0, 1.0, 1.0, 0.0])  # in another order
    rows = compare(store, [one, two])
    assert [row["model"] for row in rows] == ["one θ_1", "two θ_1", "  − one"]
    assert [row["checks"].split()[0] for row in rows] == ["25.0%", "75.0%", "+100.0"]
    console = Console(file=io.StringIO(), width=100)
    show(store, [one, two], console)
    assert "+100.0 ±0.0" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_campaign_that_won_nothing_is_its_theta_0(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert compare(store, [campaign(store, "one", ["a", "b"], [1.0, 1.0], won=-0.5)])[0] == {"model": "one θ_0", "checks": "0.0% ±0.0"}


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = campaign(store, "one", ["a", "b"], [1.0, 1.0]), campaign(store, "two", ["x", "y"], [1.0, 1.0])
    with pytest.raises(BadInput, match="one and two have no held-out row in common"):
        compare(store, [one, two])
    with pytest.raises(BadInput, match="campaign three has no finished iteration"):
        compare(store, [one, one.model_copy(update={"name": "three"})])
