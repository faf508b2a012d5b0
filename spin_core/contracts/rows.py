"""Arrow schemas and row ids: the contracts between the stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TypedDict

import pyarrow as pa

TRAIN_FILE = "train_prefs-00000-of-00001.parquet"  # of `pairs`: the official scripts' names
TEST_FILE = "test_prefs-00000-of-00001.parquet"
SPLITS = ("train", "test", "validation")  # of `prompts` and `encoded`: a parquet file each; the last only where it was asked for
CHOICE = "choice.json"  # of a chosen model
EPOCHS = "epochs"  # of a trained model: a folder with the weights after each epoch but the last, by number
HELD_OUT = ("test", "validation")
PAIRS_OF = {"train": TRAIN_FILE, "test": TEST_FILE, "validation": "validation_prefs-00000-of-00001.parquet"}  # of `pairs`, by split
SCORES_OF = {"train": "scores.parquet", "test": "test_scores.parquet", "validation": "validation_scores.parquet"}  # of `reference`
ANSWERED = ("stop", "length")  # the finish reasons of an answer; any other says why the engine refused the row
GREEDY = -1  # the number of an answer of the most likely tokens


class Message(TypedDict):
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
IDS = pa.list_(pa.int32())

PROMPTS = pa.schema(
    [
        ("row_id", pa.string()),  # 16 hex digits, see `row_id`
        ("real", MESSAGES),  # context + the human answer as the last turn
        ("generated", MESSAGES),  # the same context + an empty answer
        ("source", pa.string()),  # file or hub id
        ("row_number", pa.int64()),  # the row of the source, from 1
        ("check", pa.string()),  # JSON of an automatic check of an answer, or null
    ]
)
ENCODED = pa.schema([("row_id", pa.string()), ("prompt_ids", IDS), ("real_ids", IDS)])
SHARD = pa.schema(
    [
        ("row_id", pa.string()),
        ("sample", pa.int32()),  # from 0, GREEDY last; a prompt's samples stand together, in order
        ("prompt_ids", IDS),  # [P] exactly what the engine was given
        ("generated_ids", IDS),  # [R] exactly what it returned; an end of turn only if it was emitted
        ("finish_reason", pa.string()),  # stop | length | error: …
        ("generated", pa.string()),  # the answer as text, for people
        ("logp", pa.float64()),  # nats, summed over generated_ids, at temperature 1; held-out rows only, else null
    ]
)
PAIRS = pa.schema(
    [
        ("row_id", pa.string()),
        ("iteration", pa.int32()),  # the iteration whose opponent wrote `generated`
        ("sample", pa.int32()),  # which of its answers to this row
        ("real", MESSAGES),
        ("generated", MESSAGES),
        ("prompt_ids", IDS),  # [P]
        ("real_ids", IDS),  # [C] ends in an end of turn only if the answer ended within the limit
        ("generated_ids", IDS),  # [R]
        ("finish_reason", pa.string()),
        ("check", pa.string()),
    ]
)
SCORES = pa.schema(  # row i is row i of the pairs; which these are is in the file's metadata, see `scoring.scores`
    [
        ("real_logp", pa.float64()),  # nats, summed over the answer's tokens
        ("generated_logp", pa.float64()),
    ]
)
REJECTED = pa.schema([("row_number", pa.int64()), ("reason", pa.string())])


def row_id(messages: Sequence[Mapping[str, object]]) -> str:
    """16 hex digits of the hash of the canonical context + answer, so that duplicates in the source are visible."""
    canonical = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]
