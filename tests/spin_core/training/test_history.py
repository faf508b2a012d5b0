"""History pairs: which carried pairs have a newer answer, what it costs, and that training takes it in."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.contracts.rows import IDS, PAIRS, TEST_FILE, TRAIN_FILE
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.recipe import ModelSettings
from spin_core.store import Ref, Spec, Store
from spin_core.training.history import newer_answers
from spin_core.training.rows import sizes_of, training_rows
from spin_core.training.trainer import collate_pairs
from tests.spin_core.training.test_training import make_pairs, recipe_for, steps
from tests.stages import finetune, import_model, score

Row = tuple[str, int, list[int]]  # row_id, iteration, sampled answer
HUMAN = [1, 2]


def write(folder: Path, rows: Sequence[Row]) -> Path:
    """Pairs as the pairs stage leaves them, as far as history looks at them."""
    names, iterations, answers = map(list, zip(*rows, strict=True))
    prompts = [[ord(name)] for name in names]
    columns = [names, pa.array(iterations, pa.int32()), *(pa.array(ids, IDS) for ids in (prompts, [HUMAN] * len(rows), answers))]
    pq.write_table(pa.table(columns, names=["row_id", "iteration", "prompt_ids", "real_ids", "generated_ids"]), folder / TRAIN_FILE)
    return folder / TRAIN_FILE


def test_a_carried_pair_gets_the_newest_answer_of_its_row(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("a", 2, [3]),  # 0
        ("a", 2, [4]),  # 1
        ("b", 2, [5]),  # 2
        ("c", 2, [6]),  # 3
        ("e", 2, HUMAN),  # 4: kept by a loss with absolute terms
        ("f", 2, [9]),  # 5
        ("a", 1, [7]),  # against 0
        ("a", 1, [8]),  # against 1
        ("a", 1, [8, 9]),  # a third sample: the newest player has two
        ("b", 1, [5]),  # the same answer
        ("d", 1, [5]),  # the newest player gave the human answer, and the pair is not here
        ("e", 1, [6]),  # the newer answer is the human one: the pair itself says that
        ("f", 1, HUMAN),  # the older one is: the newer is not to be preferred
        ("c", 0, [7, 7]),  # against 3, two iterations later
    ]
    assert newer_answers(write(tmp_path, rows)).tolist() == [-1] * 6 + [0, 1, -1, -1, -1, -1, -1, 3]


def test_nothing_carried_has_none(tmp_path: Path) -> None:
    assert newer_answers(write(tmp_path, [("a", 3, [3]), ("a", 3, [4]), ("b", 3, [5])])).tolist() == [-1, -1, -1]


@settings(deadline=None)  # a busy machine is no fault
@given(st.data())
def test_it_is_the_kth_sample_that_is_left_against_the_kth(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Judged row by row as the docstring words it, whatever `pairing` left."""
    answers = st.lists(st.sampled_from([HUMAN, [3], [3, 4], [5]]), max_size=3)
    drawn = {(t, row): data.draw(answers) for t in (2, 1, 0) for row in "abc"}  # newest first, as the stage writes them
    rows = [(row, t, answer) for (t, row), found in drawn.items() for answer in found]
    if not any(t == 2 for _, t, _ in rows):
        return
    keep = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    keep[next(n for n, (_, t, _) in enumerate(rows) if t == 2)] = True
    left = [row for row, kept in zip(rows, keep, strict=True) if kept]
    expected = []
    for place, (row, t, older) in enumerate(left):
        rank = sum((one, at) == (row, t) for one, at, _ in left[:place])
        fresh = [n for n, (one, at, _) in enumerate(left) if (one, at) == (row, 2)]
        newer = fresh[rank] if t < 2 and rank < len(fresh) else -1
        told = newer >= 0 and HUMAN not in (older, left[newer][2]) and older != left[newer][2]
        expected.append(newer if told else -1)
    found = newer_answers(write(tmp_path_factory.mktemp("pairs"), rows), np.array(keep))
    assert found.tolist() == expected


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Store, Ref, Ref, Ref]:
    """20 pairs of iteration 1, and of iteration 0 those of all their rows but four, in another order."""
    store = Store(tmp_path_factory.mktemp("home"))
    model, fresh = import_model(store, ModelSettings(name=str(tiny_model))), make_pairs(store, 20)
    rows = read_rows(fresh.path / TRAIN_FILE)
    older = [row | {"generated_ids": [*row["generated_ids"][::-1], 7, 8]} for row in rows[:16]]

    def fill(out: Path) -> None:
        write_rows(out / TRAIN_FILE, [*(row | {"iteration": 1} for row in rows), *older[::-1]], PAIRS)
        write_rows(out / TEST_FILE, read_rows(fresh.path / TEST_FILE), PAIRS)

    pairs = store.build(Spec("pairs", 1, {"carried": 16}), fill)
    return store, model, pairs, score(store, recipe_for(tiny_model), model, pairs)


def test_rows_name_their_newer_one_and_its_answer_costs_no_token(world: tuple[Store, Ref, Ref, Ref], tmp_path: Path) -> None:
    """Where a row's pairs are together, the tree has the newer answer already; without history no row knows of it."""
    _, _, pairs, reference = world
    rows = training_rows(pairs.path, reference.path, tmp_path, history=True)
    assert rows["newer"][:] == [-1] * 20 + list(range(16))[::-1]
    (tmp_path / "plain").mkdir()
    plain = training_rows(pairs.path, reference.path, tmp_path / "plain")
    assert "newer" not in plain.column_names
    assert sizes_of(plain).newer is None
    (tmp_path / "chosen").mkdir()
    chosen = training_rows(pairs.path, reference.path, tmp_path / "chosen", "longest", history=True)
    assert chosen["newer"][:] == rows["newer"][:]  # one sample a row, so that all of them are chosen

    (newer,) = (place for place, row in enumerate(rows) if place < 20 and row["row_id"] == rows[20]["row_id"])
    together = collate_pairs([rows[newer], rows[20]], rows)
    without = collate_pairs([plain[newer], plain[20]])
    assert together["newer_pair_H"].tolist() == [1]
    assert together["newer_tokens_H"].tolist() == [len(rows[newer]["generated_ids"])]
    assert together["newer_reference_H"].tolist() == together["reference_generated_B"][:1].tolist()
    assert together["ids_T"].tolist() == without["ids_T"].tolist()
    assert together["pick_B"].tolist() == [*without["pick_B"].tolist(), int(without["pick_B"][2])]
    assert "newer_pair_H" not in without
    apart = collate_pairs([rows[20]], rows)
    assert len(apart["ids_T"]) > len(collate_pairs([plain[20]])["ids_T"])


def test_training_takes_history_in(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path, tmp_path: Path) -> None:
    """Two steps of all 36 pairs, one at a time or all at once; the first begins at ln 2 · (1 + w · 16/36), and the step-0 check agrees."""
    _, model, pairs, reference = world
    curves = []
    for tokens in (1, 4096):
        recipe = recipe_for(tiny_model, history_weight=0.5, tokens_per_micro_batch=tokens, pairs_per_step=36, epochs=2)
        curves.append(steps(finetune(Store(tmp_path / str(tokens)), recipe, 1, model, pairs, reference)))
    assert [len(curve) for curve in curves] == [2, 2]
    assert curves[0][0]["loss"] == pytest.approx(math.log(2) * (1 + 0.5 * 16 / 36), abs=1e-3)
    for one, all_at_once in zip(*curves, strict=True):
        for name in ("loss", "grad_norm", "rewards/real", "rewards/generated", "logps/real"):
            assert one[name] == pytest.approx(all_at_once[name], rel=1e-4, abs=1e-5), name
