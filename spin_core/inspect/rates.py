"""How fast a machine is at sampling, scoring and training: measured by earlier runs in the home, or from a table of GPUs.

Rates are in FLOP/s of the model, so that what one model took tells of another: 2 FLOPs a weight and token forward, 6 in training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from spin_core.contracts.rows import PAIRS_OF, TRAIN_FILE
from spin_core.contracts.tables import count_rows
from spin_core.generation.stage import busy_seconds
from spin_core.players.files import header, weight_files
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref, Store

_START_S = {"engine": 60.0, "child": 15.0, "between": 25.0}  # where no run has told
_PAUSE_S = 60.0  # a longer one between two stages is one between two runs
_NEWEST = 200  # artifacts of a kind that are looked at
_SAMPLING, _SCORING, _TRAINING = 0.15, 0.3, 0.35  # shares of a GPU's peak: what well-filled batches reach, to within a factor of two


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, from its data sheet."""

    memory_gb: float
    bf16_flops: float  # dense


GPUS = {
    "B200": Gpu(192, 2250e12),
    "H200": Gpu(141, 989e12),
    "H100": Gpu(80, 989e12),
    "A100": Gpu(80, 312e12),
    "A100-40": Gpu(40, 312e12),
    "L40S": Gpu(48, 362e12),
    "L4": Gpu(24, 121e12),
    "RTX4090": Gpu(24, 165e12),
}


@dataclass(frozen=True)
class Rates:
    """Of all devices together."""

    sampling: float  # FLOP/s, of prompts and answers
    scoring: float
    training: float
    engine_s: float = _START_S["engine"]  # until an engine answers
    child_s: float = _START_S["child"]  # until a child has loaded a model
    between_s: float = _START_S["between"]  # of an iteration in which no stage works: looking up, starting, ending
    sft: float | None = None  # FLOP/s of a warm start, its validation with it
    source: str = ""
    lengths: dict[str, float] = field(default_factory=dict)  # tokens of a sampled answer by `encoded` digest, as far as it is known


def parse_gpus(text: str) -> tuple[int, str]:
    """`8xH100` as (8, "H100"). Raises BadInput."""
    count, _, name = text.rpartition("x")
    if name.upper() not in GPUS or not (count or "1").isdigit() or int(count or "1") < 1:
        raise BadInput(f"--gpus {text!r} is not COUNTxNAME", remedy=f"as 8xH100; known are {', '.join(GPUS)}")
    return int(count or "1"), name.upper()


def of_table(count: int, name: str) -> Rates:
    """What so many GPUs reach, as a guess."""
    peak = count * GPUS[name].bf16_flops
    return Rates(_SAMPLING * peak, _SCORING * peak, _TRAINING * peak, source=f"a table: {count} × {name}; expect a factor of two")


def measured(store: Store) -> Rates | None:
    """What earlier runs in this home reached on this machine; None where none has sampled, scored and trained."""

    @cache
    def parameters(model: Ref) -> int:
        return weights_of(model)

    @cache
    def tokens(pairs: Ref) -> float:
        return pair_tokens(pairs.path)

    def tokens_per_s(manifest: dict[str, Any]) -> float | None:
        pairs, rate = _parent(store, manifest, "pairs"), manifest["facts"].get("pairs_per_s")
        return rate * tokens(pairs) if rate and pairs else None

    def rates(kind: str, flops: Callable[[dict[str, Any]], float | None]) -> Iterator[tuple[float, dict[str, Any]]]:
        for manifest in _manifests(store, kind):
            model, done = _parent(store, manifest, "model"), flops(manifest)
            if model and done:
                yield parameters(model) * done, manifest

    @cache
    def row(encoded: Ref) -> tuple[float, float]:
        return row_tokens(encoded.path)

    def sampled_tokens(manifest: dict[str, Any]) -> float | None:
        encoded, facts = _parent(store, manifest, "encoded"), manifest["facts"]
        return facts["tokens"] + facts["rows"] * _requests(manifest["spec"]) * row(encoded)[0] if encoded else None

    def sft_tokens_per_s(manifest: dict[str, Any]) -> float | None:
        encoded, rate = _parent(store, manifest, "encoded"), manifest["facts"].get("rows_per_s")
        return rate * sum(row(encoded)) if rate and encoded else None

    scored = [*rates("reference", tokens_per_s)]
    trained = [*rates("model", tokens_per_s)]
    shards = [*rates("shard", sampled_tokens)]
    if not (scored and trained and shards):
        return None
    span = busy_seconds(manifest["facts"] for _, manifest in shards)
    sampling = 2.0 * sum(done for done, _ in shards) / max(span, 1e-9)
    starts = [manifest["facts"]["seconds"] - _working_s(store, manifest) for _, manifest in scored]
    child = statistics.median([start for start in starts if start > 0] or [_START_S["child"]])
    scoring, training = (statistics.median(done for done, _ in found) for found in (scored, trained))
    warm = [done for done, _ in rates("model", sft_tokens_per_s)]
    return Rates(
        sampling,
        2.0 * scoring,
        6.0 * training,
        engine_s=_engine_s([manifest for _, manifest in shards]),
        child_s=child,
        between_s=_between_s(store),
        sft=6.0 * statistics.median(warm) if warm else None,
        source=f"{len(shards)} shards, {len(scored)} scorings and {len(trained)} trainings of this home",
        lengths=_lengths([manifest for _, manifest in shards]),
    )


def _manifests(store: Store, kind: str) -> list[dict[str, Any]]:
    found = [ref.manifest for ref in store.all(kind)]
    return sorted(found, key=lambda manifest: str(manifest["created"]))[-_NEWEST:]


def _parent(store: Store, manifest: dict[str, Any], kind: str) -> Ref | None:
    """Its first parent of a kind, where that is still there."""
    found = next((store.find(kind, parent["digest"]) for parent in manifest["parents"] if parent["kind"] == kind), None)
    return found if found and found.done else None


def weights_of(model: Ref) -> int:
    """The parameters of a model artifact, from its files' headers."""
    return sum(math.prod(entry["shape"]) for file in weight_files(model.path) for entry in header(file).values())


def _working_s(store: Store, manifest: dict[str, Any]) -> float:
    pairs = _parent(store, manifest, "pairs")
    assert pairs is not None
    rows = sum(count_rows(pairs.path / PAIRS_OF[split]) for split in manifest["spec"]["splits"])
    return float(rows / manifest["facts"]["pairs_per_s"])


def pair_tokens(pairs: Path) -> float:
    """The mean tokens of a train pair in the tree: prompt, human and sampled answer."""
    table = pq.read_table(pairs / TRAIN_FILE, columns=["prompt_ids", "real_ids", "generated_ids"])
    return float(sum(pc.sum(pc.list_value_length(column)).as_py() or 0 for column in table.columns) / max(1, table.num_rows))


def row_tokens(encoded: Path) -> tuple[float, float]:
    """The mean tokens of a train row's prompt, and of its human answer."""
    table = pq.read_table(encoded / "train.parquet", columns=["prompt_ids", "real_ids"])
    prompt, real = (float(pc.mean(pc.list_value_length(column)).as_py()) for column in table.columns)
    return prompt, real


def _requests(spec: dict[str, Any]) -> int:
    """How often a shard's prompts are computed: the answers that are drawn share one request."""
    return (1 if spec.get("samples", 1) else 0) + (1 if spec.get("greedy") else 0)


def _engine_s(shards: list[dict[str, Any]]) -> float:
    """What a model's first shard waited before it was sampled; later ones wait for their turn."""
    first: dict[str, tuple[float, float]] = {}
    for manifest in shards:
        facts, model = manifest["facts"], next(parent["digest"] for parent in manifest["parents"] if parent["kind"] == "model")
        found = (facts["started"], facts["seconds"] - (facts["ended"] - facts["started"]))
        first[model] = min(first.get(model, found), found)
    waits = [wait for _, wait in first.values() if wait > 5.0]
    return statistics.median(waits) if waits else _START_S["engine"]


def _between_s(store: Store) -> float:
    """Seconds an iteration in which nothing is made, of all that was made in this home."""
    made = [manifest for kind in {ref.kind for ref in store.all()} for manifest in _manifests(store, kind)]
    turns = sum(manifest["kind"] == "evaluation" for manifest in made)
    return sum(pause for pause in _pauses(made) if pause < _PAUSE_S) / turns if turns else _START_S["between"]


def _pauses(made: Sequence[dict[str, Any]]) -> Iterator[float]:
    ends = [(datetime.fromisoformat(manifest["created"]).timestamp(), manifest["facts"].get("seconds", 0.0)) for manifest in made]
    spans = sorted((end - seconds, end) for end, seconds in ends)
    latest = accumulate((end for _, end in spans), max)
    for (start, _), before in zip(spans[1:], latest, strict=False):  # the last end has nothing after it
        yield max(0.0, start - before)


def _lengths(shards: list[dict[str, Any]]) -> dict[str, float]:
    """By `encoded` digest: tokens an answer, over all train shards of it that are there."""
    tokens: dict[str, list[float]] = {}
    for manifest in shards:
        if manifest["spec"]["split"] == "train":
            encoded = next(parent["digest"] for parent in manifest["parents"] if parent["kind"] == "encoded")
            samples = manifest["spec"].get("generation", {}).get("samples_per_prompt", 1)
            tokens.setdefault(encoded, []).append(manifest["facts"]["tokens"] / max(1, samples * manifest["facts"]["rows"]))
    return {encoded: statistics.mean(found) for encoded, found in tokens.items()}
