"""What names an artifact: every key that changes results, and no key that does not."""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import create_model

from spin_core.campaign.turn import TurnStages
from spin_core.campaign.walk import Played, walk
from spin_core.recipe import Recipe, TrainingSettings, load_recipe
from spin_core.recipe.identity import Speed, identity
from spin_core.store import Ref

ROOT = Path(__file__).parents[3]
KNOWN = Path(__file__).with_name("digests.json")


class Digests:
    """A builder that notes what every stage would be named, as for two train shards and one of held-out rows."""

    def __init__(self, home: Path) -> None:
        self._home, self.iteration = home, 0
        self.found: dict[str, str] = {}

    def do(self, name: str, stage: Any) -> Ref:
        spec = stage.spec()
        self.found[name if name in {"start", "prompts", "encoded"} else f"{self.iteration} {name}"] = spec.digest
        return Ref(spec.kind, spec.digest, self._home)

    def sample(self, name: str, shards: Any) -> tuple[Ref, ...]:
        return tuple(self.do(f"{name.removesuffix('_shards')} {shard.index}", shard) for shard in shards)

    def free_devices(self) -> None:
        pass


def digests(recipe: Recipe, home: Path) -> dict[str, str]:
    """The digest of every stage of a recipe."""
    builder, played = Digests(home), Played()
    size = recipe.generation.shard_rows

    class Counted(TurnStages):
        """The encoded rows are not there to be counted."""

        def train_shards(self, opponent: Ref, encoded: Ref, total: int | None = None) -> Any:
            return super().train_shards(opponent, encoded, 2 * size)

        def held_out_shards(self, *given: Any, more: bool = False, total: int | None = None) -> Any:
            return super().held_out_shards(*given, more=more, total=size)

    for t in range(len(recipe.iterations)):
        builder.iteration = t
        played = walk(Counted.of(recipe, t, home), builder, played, t)
    return builder.found


def shipped(name: str) -> Recipe:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    commit = "0" * 40  # neither the hub nor a file of the user's is there
    model = recipe.model if recipe.model.name.startswith("pypi:") else recipe.model.model_copy(update={"revision": commit})
    data = recipe.data if recipe.data.name == "demo" or ":" in recipe.data.name else recipe.data.model_copy(update={"name": "demo"})
    return recipe.model_copy(update={"model": model, "data": data})


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml")))
def test_identity_never_changes_by_accident(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest that changes makes everybody's campaigns start again. Where it is meant, write the new list and say why."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert digests(shipped(name), tmp_path) == json.loads(KNOWN.read_text())[name], f"see {KNOWN.name}, and tests/write_digests.py"


def test_a_key_that_a_release_adds_changes_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as its default is what was done before."""
    before = digests(shipped("demo"), tmp_path)
    newer = create_model("TrainingSettings", __base__=TrainingSettings, momentum=(float, 0.0), threads=(Annotated[int, Speed], 1))
    content = shipped("demo").model_dump(mode="json")
    recipe = shipped("demo").model_copy(update={"training": newer.model_validate(content["training"])})
    assert digests(recipe, tmp_path) == before
    used = recipe.model_copy(update={"training": newer.model_validate(content["training"] | {"threads": 8})})
    assert digests(used, tmp_path) == before
    other = recipe.model_copy(update={"training": newer.model_validate(content["training"] | {"momentum": 0.9})})
    changed = {name for name, digest in digests(other, tmp_path).items() if digest != before[name]}
    assert "0 model" in changed
    assert not changed & {"start", "prompts", "encoded", "0 train 0", "0 pairs", "0 reference"}


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("training.tokens_per_micro_batch=7", None),
        ("training.sharding=fsdp2", None),
        ("generation.tensor_parallel=2", None),
        ("training.optimizer=rmsprop", None),  # the default, said aloud
        ("training.beta=0.2", "0 trained"),
        ("training.history_weight=0.5", "0 trained"),
        ("training.history_weight=0", None),
        ("training.lora={}", "0 trained"),
        ("generation.temperature=0.7", "0 test 0"),
        ("data.test_size=50", "prompts"),
        ("iterations.1.generation={temperature: 0.9}", "1 train 0"),
        ("iterations.1.data={subset: 150}", "prompts"),
        ("evaluation.sample_prompts=4", "0 evaluation"),
        ("stop.nothing_won=false", None),
        ("stop.on_worse=go_on", None),
        ("evaluation.samples=2", "0 more_test 0"),
        ("evaluation.evaluators=[nll]", "0 evaluation"),
        ("carry_over=3", None),  # of two iterations
        ("iterations.1.training={start: initial}", "1 reference"),  # in the first, θ_0 is θ_t
        ("data.validation_size=20", "prompts"),
    ],
)
def test_a_change_names_what_it_changes_and_nothing_before(change: str, first: str | None, tmp_path: Path) -> None:
    before = digests(shipped("demo"), tmp_path)
    recipe = load_recipe(ROOT / "recipes" / "demo.yaml", [change])
    after = digests(recipe, tmp_path)
    changed = [name for name in before if before[name] != after.get(name, before[name])]
    assert (changed[0] if changed else None) == first, changed


def test_what_counts_is_said_once() -> None:
    """A group that is set counts even where all in it is at its defaults; one of defaults does not."""
    assert identity(TrainingSettings()) == {}
    assert identity(TrainingSettings.model_validate({"lora": {}, "save_steps": 5})) == {"lora": {}}
    assert identity(TrainingSettings.model_validate({"lora": {"r": 8}})) == {"lora": {"r": 8}}
