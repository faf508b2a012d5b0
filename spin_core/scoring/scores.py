"""Scores, row by row those of the pairs: how scored shards become one file, and how its readers prove that it is theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.contracts.rows import SCORES
from spin_core.contracts.tables import iter_tables
from spin_core.runtime.errors import Corrupt
from spin_core.scoring.beta import Surprise

SHARD_SCORES = pa.schema([("row_id", pa.string()), ("iteration", pa.int32()), ("sample", pa.int32()), *SCORES, ("real_tokens", pa.int32())])
IDS = ["row_id", "iteration", "sample"]
SECONDS = b"seconds"  # in a shard's metadata: what scoring took
_PAIRS = b"pairs"  # in the metadata of scores: a digest of the ids of the pairs that were scored, in their order


class _IdsDigest:
    """Over rows in order, however they are cut into tables."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, table: pa.Table) -> None:
        """Adds the ids of more rows."""
        ids = zip(*(table[name].to_pylist() for name in IDS), strict=True)
        self._hash.update("".join(f"{row} {iteration} {sample}\n" for row, iteration, sample in ids).encode())

    @property
    def value(self) -> bytes:
        """64 hex digits."""
        return self._hash.hexdigest().encode()


def join_shards(shards: Sequence[Path], target: Path) -> None:
    """Writes the scores of a split from its shards, in their order and a few thousand rows at a time."""
    digest = _IdsDigest()
    with pq.ParquetWriter(target, SCORES, compression="zstd") as sink:
        for table in (table for shard in shards for table in iter_tables(shard)):
            digest.update(table)
            sink.write_table(table.select(SCORES.names))
        sink.add_key_value_metadata({_PAIRS: digest.value})


def surprise(shards: Sequence[Path]) -> Surprise:
    """How unlikely the human answers of a split are."""
    found = pa.concat_tables([pq.read_table(shard, columns=["real_logp", "real_tokens"]) for shard in shards])
    return Surprise.of(found["real_logp"].to_numpy(), found["real_tokens"].to_numpy().astype(np.int64))


def scoring_seconds(shards: Sequence[Path]) -> float:
    """What scoring them took, summed over devices."""
    return sum(float((pq.read_schema(shard).metadata or {})[SECONDS]) for shard in shards)


def read_scores(path: Path, pairs: Path) -> pa.Table:
    """The scores [N] of a file of pairs, row by row. Raises Corrupt unless exactly its rows were scored, in its order."""
    digest, rows = _IdsDigest(), 0
    for table in iter_tables(pairs, IDS):
        digest.update(table)
        rows += table.num_rows
    with suppress(KeyError, TypeError):  # without metadata they are nobody's
        if pq.read_metadata(path).metadata[_PAIRS] == digest.value:
            found = pq.read_table(path, columns=SCORES.names)
            if found.num_rows == rows:
                return found
    raise Corrupt(f"{path}: these are not the scores of {pairs}, row by row", remedy="remove the folder and run again to score anew")
