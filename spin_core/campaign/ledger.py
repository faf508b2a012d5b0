"""The ledger: one JSON file a campaign that says, turn by turn, with which recipe it was played and what it made.

Links, tables, reports and "what is next" are views of it. It is written whole or not at all, by the one run that holds the
campaign's lock, and read by anybody.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from spin_core.players.stage import Import
from spin_core.recipe import Recipe
from spin_core.recipe.identity import identity
from spin_core.recipe.load import validated
from spin_core.runtime.errors import BadInput, Corrupt
from spin_core.sources.pins import Kind, on_hub, resolve
from spin_core.store import Ref, Store
from spin_core.store.files import replace_text

_FILE = "campaign.json"
Made = Mapping[str, Ref | tuple[Ref, ...]]  # an iteration's artifacts by name; shards are several


@dataclass(frozen=True)
class Turn:
    """One iteration that was played to its end."""

    iteration: int
    recipe: dict[str, Any]  # see `settings_of`
    made: Made
    metrics: dict[str, Any]  # of its evaluation
    opponent: int  # t of the θ_t that it was played against

    def ref(self, name: str) -> Ref:
        """The one artifact of that name."""
        found = self.made[name]
        assert isinstance(found, Ref)
        return found

    def refs(self, name: str) -> tuple[Ref, ...]:
        """The artifacts of that name."""
        found = self.made[name]
        return (found,) if isinstance(found, Ref) else found

    @property
    def whole(self) -> bool:
        """Whether its results are there, in the form of this version."""
        return "splits" in self.metrics and self.ref("evaluation").done and self.ref("model").done

    @property
    def trained(self) -> Ref:
        """What came out of training: the model itself, where nothing was chosen."""
        return self.ref("trained" if "trained" in self.made else "model")


class Ledger:
    """A campaign's ledger in a store."""

    def __init__(self, store: Store, campaign: str) -> None:
        self._store, self._campaign = store, campaign
        self.path = store.campaign_folder(campaign) / _FILE

    def turns(self) -> list[Turn]:
        """What was played, in order."""
        return [self._turn(entry) for entry in self._read()["turns"]]

    def whole_turns(self) -> list[Turn]:
        """The leading turns whose results are there."""
        return [*takewhile(lambda turn: turn.whole, self.turns())]

    def note(self, iteration: int, recipe: Recipe, made: Made, opponent: int) -> None:
        """Writes a turn down. Turns after it stay only where it made what it had made before: they were played on that."""
        content = self._read()
        verdict = made["evaluation"]
        assert isinstance(verdict, Ref)
        entry = {
            "iteration": iteration,
            "recipe": settings_of(recipe, iteration),
            "opponent": opponent,
            "made": {name: _named(found) for name, found in made.items()},
            "metrics": json.loads((verdict.path / "metrics.json").read_text()),
        }
        before, later = content["turns"][:iteration], content["turns"][iteration + 1 :]
        same = len(content["turns"]) > iteration and content["turns"][iteration]["made"] == entry["made"]
        self._write(content | {"turns": [*before, entry, *(later if same else [])]})

    def pinned(self, recipe: Recipe, *, begin: bool = True, precision: Callable[[], str] | None = None) -> Recipe:
        """The recipe with hub revisions replaced by commits: those of the campaign's start.

        What is not pinned yet is resolved. Where the campaign is to `begin`, that is written down, and the recipe as it was given.
        `precision` says what `auto` is on a cluster's nodes, which this machine cannot know. Raises BadInput.
        """
        content = self._read()
        before = copy.deepcopy(content)
        pins: dict[str, str] = content["pins"]

        def pin(key: str, ask: Callable[[], str]) -> str:
            return pins[key] if key in pins else pins.setdefault(key, ask())

        def commit(kind: Kind, name: str, revision: str | None) -> str | None:
            """What a name of the hub is pinned to; of anything else its own revision."""
            return pin(f"{kind} {name}@{revision or ''}", lambda: resolve(kind, name, revision)) if on_hub(name) else revision

        model, data, pairs = recipe.model, recipe.data, recipe.start_pairs
        model = model.model_copy(update={"revision": commit("model", model.name, model.revision)})
        if on_hub(model.name) and model.base is None:
            base = pin(f"base of {model.name}@{model.revision}", Import(model, self._store.home).pinned_base)
            model = model.model_copy(update={"base": base})
        data = data.model_copy(update={"revision": commit("data", data.name, data.revision)})
        if pairs:
            pairs = pairs.model_copy(update={"revision": commit("data", pairs.name, pairs.revision)})
        training = recipe.training
        if training.precision == "auto" and (precision or "precision" in pins):
            training = training.model_copy(update={"precision": pin("precision", precision or str)})
        if begin:
            content["recipe"] = recipe.model_dump(mode="json", exclude_unset=True)
            if content != before:
                self._write(content)
        return recipe.model_copy(update={"model": model, "data": data, "start_pairs": pairs, "training": training})

    @property
    def there(self) -> bool:
        """Whether anything was written down."""
        self._store.pull(self.path)
        return self.path.is_file()

    @property
    def begun(self) -> bool:
        """Whether a run has begun the campaign."""
        content = self._read()
        return bool(content["turns"] or content.get("recipe"))

    def recipe(self) -> Recipe:
        """The recipe that the campaign was last begun with, as it was given; one that was begun before ledgers had it has that of its
        last turn, and the default stop rule. Raises BadInput where nothing was begun."""
        content = self._read()
        given: dict[str, Any] | None = content.get("recipe")
        if given is None and content["turns"]:
            given = content["turns"][-1]["recipe"] | {"name": self._campaign, "iterations": [{} for _ in content["turns"]]}
        if given is None:
            raise BadInput(f"campaign {self._campaign} was never begun", remedy="start it with `spinflow run`")
        return validated(given, f"{self.path}, recipe")

    def pin_as(self, other: Ledger) -> None:
        """Takes over the commits that another campaign began with."""
        self._write(self._read() | {"pins": other._read()["pins"]})

    def _turn(self, entry: Mapping[str, Any]) -> Turn:
        made = {name: self._found(names) for name, names in entry["made"].items()}
        return Turn(entry["iteration"], entry["recipe"], made, entry["metrics"], entry.get("opponent", entry["iteration"]))

    def _found(self, names: str | list[str]) -> Ref | tuple[Ref, ...]:
        if isinstance(names, str):
            return self._store.find(*names.split("/", 1))
        return tuple(self._store.find(*name.split("/", 1)) for name in names)

    def _read(self) -> dict[str, Any]:
        self._store.pull(self.path)
        try:
            found: dict[str, Any] = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {"name": self._campaign, "pins": {}, "turns": []}
        except ValueError:
            raise Corrupt(f"{self.path} cannot be read", remedy="remove it and run again; what is done is found again") from None
        return found

    def _write(self, content: Mapping[str, Any]) -> None:
        replace_text(self.path, json.dumps(content, indent=1, ensure_ascii=False))
        self._store.push(self.path)


def model_of(turns: Sequence[Turn], number: int) -> Ref:
    """θ_`number` of a campaign of which at least one turn was played."""
    return turns[number - 1].ref("model") if number else turns[0].ref("start")


def settings_of(recipe: Recipe, iteration: int) -> dict[str, Any]:
    """What the recipe says about one iteration, keys of speed and those at their defaults left out.

    Its name, its stop rule and what other iterations have is not of it.
    """
    return identity(recipe.at(iteration), without={"name", "stop", "iterations"})


def _named(found: Ref | tuple[Ref, ...]) -> str | list[str]:
    if isinstance(found, Ref):
        return f"{found.kind}/{found.digest}"
    return [f"{ref.kind}/{ref.digest}" for ref in found]
