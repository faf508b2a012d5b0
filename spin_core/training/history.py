"""History pairs: which carried pairs have a newer answer to be held against. Axes: N pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spin_core.contracts.tables import fingerprints, iter_tables

_IDS = ("prompt_ids", "real_ids", "generated_ids")


def newer_answers(pairs: Path, keep_N: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """For each pair that is kept, the place among them of the pair whose sampled answer is its row's newer one; −1 for none.

    A carried pair gets the newest opponent's: its row's k-th sample that is left against the k-th one. None where one of the two
    sampled answers is the other or the human one: there is nothing to prefer, or the pair says so already.
    """
    tables = []
    for table in iter_tables(pairs, ["row_id", "iteration", *_IDS]):
        prints = {name: pa.array(fingerprints(table[name].combine_chunks())) for name in _IDS}
        tables.append(pa.table({"row_id": table["row_id"], "iteration": table["iteration"], **prints}))
    found = pa.concat_tables(tables) if keep_N is None else pa.concat_tables(tables).filter(pa.array(keep_N))
    row_N = found["row_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    iteration_N, prompt_N, real_N, generated_N = (found[name].to_numpy() for name in ("iteration", *_IDS))
    rank_N = _rank(row_N, iteration_N)
    key_N = row_N * (rank_N.max(initial=0) + 1) + rank_N  # equal where the row is and the number of the sample
    carried_N = iteration_N < iteration_N.max(initial=0)
    fresh = np.flatnonzero(~carried_N)
    fresh = fresh[np.argsort(key_N[fresh])]
    newer_N = fresh[np.searchsorted(key_N[fresh], key_N).clip(max=len(fresh) - 1)]
    new_N = generated_N[newer_N]
    paired_N = carried_N & (key_N[newer_N] == key_N) & (prompt_N[newer_N] == prompt_N)
    told_N = (new_N != generated_N) & (new_N != real_N) & (generated_N != real_N)
    return np.where(paired_N & told_N, newer_N, -1)


def _rank(row_N: NDArray[np.int64], iteration_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """Each pair's number among those of its row and iteration, from 0, as they stand."""
    order = np.lexsort((iteration_N, row_N))  # stable
    number = np.arange(len(order))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(row_N[order]) != 0) | (np.diff(iteration_N[order]) != 0)
    rank_N = np.empty(len(order), dtype=np.int64)
    rank_N[order] = number - np.maximum.accumulate(np.where(first, number, 0))
    return rank_N
