"""Gather against a plain pyarrow copy of the same files: rows/s of both, alternating, and gather's resident memory.

The copy reads every input file (prompts, encoded rows, shards) with `pyarrow.parquet.read_table` and writes it with
`write_table`, zstd as gather does; a file of more than 64k rows goes batch by batch, so that it fits in memory. Gather also hashes all its
input, joins, hashes and fsyncs its output. The rows are made up: UltraChat-like lengths, random letters and ids.

    python -m bench.gather                    # 100,000 rows, about a minute
    python -m bench.gather --rows 1000000     # the full claim
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.facts import facts
from bench.peak import ChildPeak
from spin_core.contracts.rows import ENCODED, PROMPTS, SHARD
from spin_core.contracts.tables import TableWriter, with_last_content
from spin_core.encoding.ends import Ends
from spin_core.store import Ref, Spec, Store
from tests.stages import join

_TEXT = "".join(np.random.default_rng(0).choice(list("etaoin shrdlu cmfwyp"), 1 << 20))
_CHUNK = 1000  # rows of a shard


def _texts(rng: Any, rows: int, mean: int) -> pa.Array:
    starts, sizes = rng.integers(0, len(_TEXT) - 8 * mean, rows), rng.geometric(1 / mean, rows).clip(8, 8 * mean)
    return pa.array([_TEXT[start : start + size] for start, size in zip(starts, sizes, strict=True)])


def _ids(rng: Any, rows: int, mean: int, limit: int) -> pa.ListArray:
    sizes = rng.geometric(1 / mean, rows).clip(1, limit) if limit > mean else np.full(rows, mean)
    offsets = pa.array(np.concatenate([[0], sizes.cumsum()]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(rng.integers(0, 32000, int(sizes.sum())).astype(np.int32)))


def _talks(prompts: pa.Array, answers: pa.Array) -> pa.ListArray:
    rows = len(prompts)
    content = pa.concat_arrays([prompts, answers]).take(pa.array(np.arange(2 * rows).reshape(2, rows).T.ravel()))
    turns = pa.StructArray.from_arrays([pa.array(["user", "assistant"] * rows), content], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * rows + 1, 2, dtype=np.int32)), turns)


CHAT = ((110, 512), (200, 256), (180, 256))  # mean and largest tokens of prompt, human answer and sampled answer
Lengths = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def make(store: Store, rows: int, lengths: Lengths = CHAT) -> tuple[Ref, Ref, Ref, list[Ref], list[Ref]]:
    """Artifacts of `rows` train rows and 1,000 held-out ones: model (empty), prompts, encoded, train shards, test shards."""
    prompt, answer, sampled = lengths
    sides = {"train": rows, "test": 1000}
    shards: dict[str, list[Ref]] = {"train": [], "test": []}
    model = store.build(Spec("model", 1, {}), lambda _: None)

    def write_shard(path: Path, ids: pa.Array, prompt_ids: pa.Array, rng: Any) -> None:
        columns = [ids, pa.array([0] * len(ids), pa.int32()), prompt_ids, _ids(rng, len(ids), *sampled), pa.array(["stop"] * len(ids))]
        columns += [_texts(rng, len(ids), 750), pa.nulls(len(ids), pa.float64())]
        with TableWriter(path / "shard.parquet", SHARD) as sink:
            sink.write(pa.table(columns, schema=SHARD))

    def write_all(folder: Path) -> None:
        rng = np.random.default_rng(1)
        for split, count in sides.items():
            with TableWriter(folder / f"{split}.parquet", PROMPTS) as prompts, TableWriter(folder / f"{split}.enc", ENCODED) as encoded:
                for start in range(0, count, _CHUNK):
                    size = min(_CHUNK, count - start)
                    ids = pa.array([f"{value:016x}" for value in rng.integers(0, 1 << 63, size)])
                    real = _talks(_texts(rng, size, 450), _texts(rng, size, 900))
                    empty, prompt_ids = pa.array([""] * size), _ids(rng, size, *prompt)
                    numbers = pa.array(range(start + 1, start + size + 1), pa.int64())
                    names = [pa.array(["bench"] * size), numbers, pa.nulls(size, pa.string())]
                    prompts.write(pa.table([ids, real, with_last_content(real, empty), *names], schema=PROMPTS))
                    encoded.write(pa.table([ids, prompt_ids, _ids(rng, size, *answer)], schema=ENCODED))
                    spec = Spec("shard", 1, {"split": split, "start": start})
                    shards[split].append(store.build(spec, lambda path, i=ids, p=prompt_ids: write_shard(path, i, p, rng)))

    prompts = store.build(Spec("prompts", 1, {"rows": rows}), write_all)

    def move_encoded(path: Path) -> None:
        for split in sides:
            os.rename(prompts.path / f"{split}.enc", path / f"{split}.parquet")
        Ends([2], ["</s>"], 2).write(path)

    encoded = store.build(Spec("encoded", 1, {"rows": rows}), move_encoded)
    _rewrite_manifest(prompts)
    return model, prompts, encoded, shards["train"], shards["test"]


def _rewrite_manifest(prompts: Ref) -> None:
    manifest = prompts.manifest
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if name.endswith(".parquet")}
    (prompts.path / "MANIFEST.json").write_text(json.dumps(manifest))


def copy(files: list[Path], target: Path) -> float:
    """Seconds of a plain copy through Arrow."""
    target.mkdir()
    started = time.perf_counter()
    for number, file in enumerate(files):
        with pq.ParquetFile(file) as source:
            if source.metadata.num_rows <= 65536:
                pq.write_table(source.read(), target / f"{number}.parquet", compression="zstd")
                continue
            with pq.ParquetWriter(target / f"{number}.parquet", source.schema_arrow, compression="zstd") as sink:
                for batch in source.iter_batches(65536):
                    sink.write_batch(batch)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-gather-") as folder:
        store = Store(Path(folder))
        _, prompts, encoded, train, test = make(store, options.rows)
        files = [path / f"{split}.parquet" for path in (prompts.path, encoded.path) for split in ("train", "test")]
        files += [shard.path / "shard.parquet" for shard in (*train, *test)]
        size = sum(file.stat().st_size for file in files)
        print(f"{options.rows:,} rows, {len(files):,} files, {size / 1e9:.2f} GB; {options.repetitions} repetitions")
        times: dict[str, list[float]] = {"copy": [], "gather": []}
        peak = ChildPeak("spin_core.pairs.job")
        for number in range(options.repetitions):
            times["copy"].append(copy(files, Path(folder) / "copy"))
            started = time.perf_counter()
            pairs = join(store, number, prompts, encoded, train, test)
            times["gather"].append(time.perf_counter() - started)
            assert pairs.facts["pairs"] == options.rows
            shutil.rmtree(pairs.path)
            print("  ".join(f"{name} {values[-1]:.1f} s" for name, values in times.items()), flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        **facts("gather", "pyarrow"),
        "rows": options.rows,
        "input_bytes": size,
        "seconds": medians,
        "rows_per_s": {name: round(options.rows / seconds) for name, seconds in medians.items()},
        "ratios": {"vs_pyarrow_copy": round(medians["copy"] / medians["gather"], 3)},
        "spread": {name: [min(values), max(values)] for name, values in times.items()},
        "gather_max_rss_mb": round(peak.mb),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
