"""How fast a machine is at sampling, scoring and training: measured by earlier runs in the home, or from a table of GPUs.

Rates are in FLOP/s of the model, so that what one model took tells of another: 2 FLOPs a weight and token forward, 6 in training.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_core.generation.stage import busy_seconds
from spin_core.players.files import header, weight_files
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref, Store

_START_S = {"engine": 60.0, "child": 15.0}  # where no run has told
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

    sampling: float  # FLOP/s
    scoring: float
    training: float
    engine_s: float = _START_S["engine"]  # until an engine answers
    child_s: float = _START_S["child"]  # until a child has loaded a model
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
    sizes: dict[str, int | None] = {}

    def parameters(parents: Iterable[dict[str, str]]) -> int | None:
        found = next((parent["digest"] for parent in parents if parent["kind"] == "model"), None)
        if found not in sizes:
            sizes[found or ""] = _parameters(store, found)
        return sizes[found or ""]

    def rates(kind: str, flops: Callable[[dict[str, Any]], float | None]) -> Iterator[tuple[float, dict[str, Any]]]:
        for manifest in _manifests(store, kind):
            weights, done = parameters(manifest["parents"]), flops(manifest)
            if weights and done:
                yield weights * done, manifest

    scored = [*rates("reference", lambda manifest: _tokens_per_s(store, manifest, "pairs_per_s"))]
    trained = [*rates("model", lambda manifest: _tokens_per_s(store, manifest, "pairs_per_s"))]
    shards = [*rates("shard", lambda manifest: manifest["facts"].get("tokens"))]
    if not (scored and trained and shards):
        return None
    span = busy_seconds(manifest["facts"] for _, manifest in shards)
    sampling = 2.0 * sum(done for done, _ in shards) / max(span, 1e-9)
    waits = [manifest["facts"]["seconds"] - (manifest["facts"]["ended"] - manifest["facts"]["started"]) for _, manifest in shards]
    engine = min((wait for wait in waits if wait > 5.0), default=_START_S["engine"])
    starts = [manifest["facts"]["seconds"] - _working_s(store, manifest) for _, manifest in scored]
    child = statistics.median([start for start in starts if start > 0] or [_START_S["child"]])
    scoring, training = (statistics.median(done for done, _ in found) for found in (scored, trained))
    source = f"{len(shards)} shards, {len(scored)} scorings and {len(trained)} trainings of this home"
    return Rates(sampling, 2.0 * scoring, 6.0 * training, engine, child, source, _lengths(shards))


def _manifests(store: Store, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (store.home / "artifacts" / kind).glob("*/MANIFEST.json")]
    return sorted(found, key=lambda manifest: str(manifest["created"]))[-_NEWEST:]


def _parameters(store: Store, digest: str | None) -> int | None:
    return weights_of(store.find("model", digest)) if digest and store.find("model", digest).done else None


def weights_of(model: Ref) -> int:
    """The parameters of a model artifact, from its files' headers."""
    total = 0
    for file in weight_files(model.path):
        for entry in header(file).values():
            size = 1
            for length in entry["shape"]:
                size *= length
            total += size
    return total


def _pairs_of(store: Store, manifest: dict[str, Any]) -> Path | None:
    found = next((parent["digest"] for parent in manifest["parents"] if parent["kind"] == "pairs"), None)
    return store.find("pairs", found).path if found and store.find("pairs", found).done else None


def _tokens_per_s(store: Store, manifest: dict[str, Any], name: str) -> float | None:
    rate, pairs = manifest["facts"].get(name), _pairs_of(store, manifest)
    return rate * pair_tokens(pairs) if rate and pairs else None


def _working_s(store: Store, manifest: dict[str, Any]) -> float:
    pairs = _pairs_of(store, manifest)
    assert pairs is not None
    return float(_rows(pairs, manifest["spec"]["splits"]) / manifest["facts"]["pairs_per_s"])


def pair_tokens(pairs: Path) -> float:
    """The mean tokens of a train pair in the tree: prompt, human and sampled answer."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from spin_core.contracts.rows import TRAIN_FILE

    table = pq.read_table(pairs / TRAIN_FILE, columns=["prompt_ids", "real_ids", "generated_ids"])
    return float(sum(pc.sum(pc.list_value_length(column)).as_py() or 0 for column in table.columns) / max(1, table.num_rows))


def _rows(pairs: Path, splits: Iterable[str]) -> int:
    from spin_core.contracts.rows import PAIRS_OF
    from spin_core.contracts.tables import count_rows

    return sum(count_rows(pairs / PAIRS_OF[split]) for split in splits)


def _lengths(shards: list[tuple[float, dict[str, Any]]]) -> dict[str, float]:
    """By `encoded` digest: tokens an answer, over all train shards of it that are there."""
    tokens: dict[str, list[float]] = {}
    for _, manifest in shards:
        if manifest["spec"]["split"] == "train":
            encoded = next(parent["digest"] for parent in manifest["parents"] if parent["kind"] == "encoded")
            samples = manifest["spec"].get("generation", {}).get("samples_per_prompt", 1)
            tokens.setdefault(encoded, []).append(manifest["facts"]["tokens"] / max(1, samples * manifest["facts"]["rows"]))
    return {encoded: statistics.mean(found) for encoded, found in tokens.items()}
