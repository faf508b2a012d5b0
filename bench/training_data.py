"""The pairs that training is measured on: ShareGPT prompts, their real answers, and answers sampled from the model.

Everything goes through the recipe's stages as the flow runs them. What was sampled stays in the store, so a second run samples
nothing. More rows are sampled than are trained on: those are spread evenly over the lengths that were found, the longest included, so
that few pairs are as uneven as many. The last turn is answered; with first turns alone, ShareGPT's prompts hardly exceed the
template's own 30 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import PAIRS, TEST_FILE, TRAIN_FILE
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import shards
from spin_core.recipe import Recipe, load_recipe, with_overrides
from spin_core.store import Ref, Spec, Store
from tests.stages import encode, generate, import_model, join, reformat

ROOT = Path(__file__).parents[1]
SETS = ("main", "long", "carry")
_IDS = ("prompt_ids", "real_ids", "generated_ids")
_POOL = 60  # prompts: about a third are within the limit and sampled, some more than are used
_LIMITS = {
    "main": ["data.max_prompt_tokens=512", "generation.max_new_tokens=256"],
    "long": ["data.max_prompt_tokens=1024", "generation.max_new_tokens=128"],
}


@dataclass(frozen=True)
class PairSet:
    """A `pairs` artifact with what it is trained by: one optimiser step an epoch, so that every side's steps hold the same pairs."""

    name: str
    recipe: Recipe
    model: Ref
    pairs: Ref
    rows: list[dict[str, Any]]  # prompt_ids, real_ids, generated_ids

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with an answer."""
        return max(len(row["prompt_ids"]) + max(len(row["real_ids"]), len(row["generated_ids"])) for row in self.rows)

    def describe(self) -> str:
        """Sizes, for people."""
        mean = {name: sum(len(row[name]) for row in self.rows) / len(self.rows) for name in _IDS}
        lengths = ", ".join(f"{name.removesuffix('_ids')} {value:.0f}" for name, value in mean.items())
        return f"{self.name}: {len(self.rows)} pairs; tokens on average: {lengths}; longest sequence {self.longest}"


def make_sets(store: Store, names: list[str], pairs: int) -> list[PairSet]:
    """The named sets: `main` of `pairs` pairs, `carry` of half as many (a row has two answers), `long` of a quarter."""
    sets = []
    for name in names:
        kind, rows = ("long" if name == "long" else "main"), (pairs if name == "main" else max(1, pairs // 4))
        recipe = load_recipe(ROOT / "recipes" / "sharegpt-smollm2.yaml", _overrides(kind, pairs))
        model, prompts = import_model(store, recipe.model), reformat(store, recipe.data)
        found = _gather(store, recipe, 0, model, prompts, None)
        chosen = _spread_rows(found, rows, _is_long if kind == "long" else lambda row: True)
        if name == "carry":  # θ_0 stands in for θ_1: a second draw of its answers, gathered with the first as iteration 1 is
            again = with_overrides(recipe, [f"generation.seed={recipe.generation.seed + 1}"])
            found = _gather(store, again, 1, model, prompts, found)
        cut = _cut(store, found, chosen)
        content = read_rows(cut.path / TRAIN_FILE, list(_IDS))
        trained = with_overrides(recipe, [f"training.pairs_per_step={len(content)}", "training.beta=0.1"])  # TRL has no β from the data
        sets.append(PairSet(name, trained, model, cut, content))
    return sets


def _overrides(kind: str, pairs: int) -> list[str]:
    data = ["data.turns=last", f"data.subset={max(_POOL, 6 * pairs) + 1}", "data.test_size=1", "generation.shard_rows=12"]
    training = ["training.precision=fp32", "training.epochs=2", "training.warmup_ratio=0.0"]
    return [*_LIMITS[kind], *data, "iterations=[{}, {}]", *training]


def _gather(store: Store, recipe: Recipe, iteration: int, model: Ref, prompts: Ref, previous: Ref | None) -> Ref:
    """Samples what the store does not hold yet, with the recipe's engine, and joins it with the real answers."""
    encoded = encode(store, recipe, model, prompts)
    with EnginePool(store) as pool, ThreadPoolExecutor(16) as threads:
        train, test = (
            list(threads.map(lambda shard: generate(store, shard, pool), shards(recipe, model, encoded, split, "bench")))
            for split in ("train", "test")
        )
    return join(store, iteration, prompts, encoded, train, test, [previous] if previous else ())


def _is_long(row: dict[str, Any]) -> bool:
    return len(row["prompt_ids"]) >= 4 * max(len(row["real_ids"]), len(row["generated_ids"]))


def _spread_rows(pairs: Ref, count: int, wanted: Callable[[dict[str, Any]], bool]) -> list[str]:
    """`count` of the usable rows, at equal distances in the order of their tokens.

    From the shortest to the longest: in an epoch of real size some batch holds the longest pair, and it decides the memory.
    """
    found = [row for row in read_rows(pairs.path / TRAIN_FILE, ["row_id", *_IDS]) if wanted(row)]
    if len(found) < count:
        raise SystemExit(f"only {len(found)} rows of the pool can be used, not {count}; take fewer --pairs")
    found.sort(key=lambda row: (sum(len(row[name]) for name in _IDS), row["row_id"]))
    return [found[round(part * (len(found) - 1) / max(1, count - 1))]["row_id"] for part in range(count)]


def _cut(store: Store, pairs: Ref, row_ids: list[str]) -> Ref:
    """The pairs of these rows as an artifact of its own."""

    def write(staging: Path) -> None:
        kept = [row for row in read_rows(pairs.path / TRAIN_FILE) if row["row_id"] in row_ids]
        write_rows(staging / TRAIN_FILE, kept, PAIRS)
        write_rows(staging / TEST_FILE, read_rows(pairs.path / TEST_FILE), PAIRS)

    return store.build(Spec("pairs", 1, {"bench": sorted(row_ids)}, (pairs,)), write)
