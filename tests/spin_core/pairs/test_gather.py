"""Gather proves that every row is there exactly once, and makes pairs that `datasets` and the official trainer read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.contracts.rows import ENCODED, IDS, SHARD, TEST_FILE, TRAIN_FILE, row_id
from spin_core.contracts.tables import read_rows, same_lists, with_last_content, write_rows
from spin_core.encoding.ends import Ends
from spin_core.pairs import job as gather_job
from spin_core.pairs.job import prove_complete
from spin_core.recipe import DataSettings
from spin_core.runtime.errors import BadInput, Corrupt
from spin_core.store import Ref, Spec, Store
from tests.stages import join, reformat


@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, unique=True), st.randoms())
def test_any_loss_or_copy_is_found(ids: list[str], random: object) -> None:
    """A lost or doubled row would train on other data than the recipe says."""
    prove_complete(list(reversed(ids)), ids, "train")
    victim = random.choice(ids)  # type: ignore[attr-defined]
    for found in ([i for i in ids if i != victim], [*ids, victim], [*ids, victim + "?"]):
        if victim + "?" in ids and found[-1] == victim + "?":
            continue
        with pytest.raises(Corrupt, match="gather: 1 of"):
            prove_complete(found, ids, "train")


def test_row_ids_tell_contexts_and_answers_apart() -> None:
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert len(row_id([user, answer])) == 16
    assert row_id([user, answer]) != row_id([user, {"role": "assistant", "content": "c"}])
    assert row_id([{"role": "user", "content": "a\nb"}]) != row_id([user, {"role": "user", "content": "b"}])


LISTS = st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=12)


@given(LISTS, st.data())
def test_lists_are_compared_as_python_does(left: list[list[int]], data: st.DataObject) -> None:
    right = data.draw(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=len(left), max_size=len(left)))
    start = data.draw(st.integers(0, len(left) - 1))  # slices share their parent's buffers
    found = same_lists(pa.array(left, IDS)[start:], pa.array(right, IDS)[start:]).to_pylist()
    assert found == [a == b for a, b in zip(left[start:], right[start:], strict=True)]


@given(st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=4), min_size=1, max_size=8), st.data())
def test_only_the_last_turn_is_replaced(talks: list[list[str]], data: st.DataObject) -> None:
    rows = [[{"role": "user", "content": text} for text in talk] for talk in talks]
    start = data.draw(st.integers(0, len(rows) - 1))
    texts = [f"new {i}" for i in range(len(rows) - start)]
    found = with_last_content(pa.array(rows)[start:], pa.array(texts)).to_pylist()
    assert found == [[*talk[:-1], {"role": "user", "content": text}] for talk, text in zip(rows[start:], texts, strict=True)]


ENDS = Ends([0, 1], ["</s>", "<|end|>"], 0)  # ids that no character of the rows has


class World:
    """A small store with prompts, encoded rows and shards, made without a model."""

    def __init__(self, folder: Path, rows: int = 40, skipped: int = 5, shard_rows: int = 7) -> None:
        self.store = Store(folder / "home")
        talks = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(rows)]
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, talks)))
        self.model = self.store.build(Spec("model", 1, {}), lambda _: None)
        self.prompts = reformat(self.store, DataSettings(name=str(folder / "data.jsonl"), test_size=10))
        self.rows = {split: read_rows(self.prompts.path / f"{split}.parquet") for split in ("train", "test")}
        for split, found in self.rows.items():
            self.rows[split] = [row for i, row in enumerate(found) if i % skipped]  # the others' prompts were too long
        self.encoded = self.store.build(Spec("encoded", 1, {}), self._encode)
        self.shard_rows = shard_rows

    def _encode(self, staging: Path) -> None:
        ENDS.write(staging)
        for split, rows in self.rows.items():
            content = [{"row_id": r["row_id"], "prompt_ids": self.prompt_ids(r), "real_ids": self.real_ids(r)} for r in rows]
            write_rows(staging / f"{split}.parquet", content, ENCODED)

    @staticmethod
    def prompt_ids(row: dict[str, Any]) -> list[int]:
        return list(row["real"][0]["content"].encode())

    @staticmethod
    def real_ids(row: dict[str, Any]) -> list[int]:
        return list(row["real"][-1]["content"].encode())

    def answer(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """Every third answer is the human one, every eleventh was refused."""
        ids, finish = ([1, number], "stop") if number % 3 else (self.real_ids(row), "stop")
        if number % 11 == 10:
            ids, finish = [], "error: too long"
        return {
            "row_id": row["row_id"],
            "sample": 0,
            "prompt_ids": self.prompt_ids(row),
            "generated_ids": ids,
            "finish_reason": finish,
            "generated": f"g{number}",
        }

    def shards(self, split: str, change: Any = None, tag: int = 0) -> list[Ref]:
        answers = [self.answer(row, i) for i, row in enumerate(self.rows[split])]
        answers = change(answers) if change else answers
        return [
            self.store.build(
                Spec("shard", 1, {"split": split, "start": start, "tag": tag}),
                lambda staging, s=start: write_rows(staging / "shard.parquet", answers[s : s + self.shard_rows], SHARD) and None,
            )
            for start in range(0, len(answers), self.shard_rows)
        ]

    def join(self, train: list[Ref], test: list[Ref], iteration: int = 0, *carried: Ref, keep: bool = False) -> Ref:
        return join(self.store, iteration, self.prompts, self.encoded, train, test, carried, keep)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_pairs_are_the_rows_with_their_answers(world: World) -> None:
    """A pair whose two sides come from different rows would train the model on nonsense, silently."""
    pairs = world.join(world.shards("train"), world.shards("test"))
    train, test = read_rows(pairs.path / TRAIN_FILE), read_rows(pairs.path / TEST_FILE)
    wanted = [(row, world.answer(row, i)) for i, row in enumerate(world.rows["train"])]
    usable = [(row, a) for row, a in wanted if a["finish_reason"] == "stop"]
    different = [(row, a) for row, a in usable if a["generated_ids"] != world.real_ids(row)]
    assert pairs.facts["identical"] == len(usable) - len(different) > 0
    assert pairs.facts["refused"] == len(wanted) - len(usable) > 0
    assert pairs.facts["pairs"] == len(train) == len(different)
    for pair, (row, answer) in zip(train, different, strict=True):
        assert pair["real"] == row["real"]
        assert pair["generated"] == [row["real"][0], {"role": "assistant", "content": answer["generated"]}]
        assert (pair["prompt_ids"], pair["real_ids"]) == (world.prompt_ids(row), world.real_ids(row))
        assert (pair["row_id"], pair["generated_ids"], pair["iteration"]) == (row["row_id"], answer["generated_ids"], 0)
    assert len(test) == pairs.facts["held_out"] == len(world.rows["test"])  # identical ones stay: they are scored
    assert set(pairs.facts["shortcuts"]) == {"first_token", "last_token", "length", "unfinished"}
    assert "identical" not in pairs.facts["message"]
    assert "with the same answer on both sides" in pairs.facts["message"]


def test_one_answer_on_both_sides_is_no_pair(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended it: such a pair would teach an end of turn, white space, or a spelling in tokens, and nothing of the answer."""
    human = [[*world.real_ids(row), 0] for row in world.rows["train"]]
    monkeypatch.setattr(world, "real_ids", lambda row: [*World.real_ids(row), 0])
    world.encoded = world.store.build(Spec("encoded", 1, {"ended": True}), world._encode)
    texts = [row["real"][-1]["content"] for row in world.rows["train"]]
    changes = [
        lambda a, ids, text: a | {"generated_ids": ids, "generated": text},
        lambda a, ids, text: a | {"generated_ids": [*ids[:-1], 1], "generated": text},  # it ended in the other end of turn
        lambda a, ids, text: a | {"generated_ids": [9, *ids], "generated": f" {text}"},  # white space before it, and so other tokens
        lambda a, ids, text: a | {"generated_ids": [9, *ids[:-1]], "generated": text, "finish_reason": "length"},  # not whole
        lambda a, ids, text: a | {"generated_ids": [9, *ids], "generated": f"{text}!"},
    ]

    def change(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [changes[i % 5](a | {"finish_reason": "stop"}, human[i], texts[i]) for i, a in enumerate(answers)]

    pairs = world.join(world.shards("train", change), world.shards("test"))
    kept = [row["generated_ids"] for row in read_rows(pairs.path / TRAIN_FILE)]
    assert kept == [[9, *ids[: -1 if i % 5 == 3 else None]] for i, ids in enumerate(human) if i % 5 > 2]
    assert pairs.facts["identical"] == len(human) - len(kept)


@settings(max_examples=3, deadline=None)
@given(samples=st.integers(1, 4), shard_rows=st.integers(6, 20))
def test_every_sample_is_a_pair_of_its_own_row(tmp_path_factory: pytest.TempPathFactory, samples: int, shard_rows: int) -> None:
    """Equal answers of a row all stay; one sample a row is what there was without samples."""
    world = World(tmp_path_factory.mktemp("world"), 30, shard_rows=shard_rows * samples)  # shards hold whole rows

    def change(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**a, "sample": k, "generated": f"{a['generated']}.{k // 2}"} for a in answers for k in range(samples)]

    several = read_rows(world.join(world.shards("train", change), world.shards("test")).path / TRAIN_FILE)
    one = read_rows(world.join(world.shards("train", tag=1), world.shards("test")).path / TRAIN_FILE)
    wanted = [
        {
            **pair,
            "sample": k,
            "generated": [pair["generated"][0], {"role": "assistant", "content": f"{pair['generated'][-1]['content']}.{k // 2}"}],
        }
        for pair in one
        for k in range(samples)
    ]
    assert several == wanted


def test_a_lost_sample_is_found(world: World) -> None:
    def change(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**a, "sample": k} for a in answers for k in range(2)][:-1]

    with pytest.raises(Corrupt, match="not in the order of the prompts and their samples"):
        world.join(world.shards("train", change), world.shards("test"))


def test_carry_over_takes_the_previous_iterations_own_pairs(world: World) -> None:
    first = world.join(world.shards("train"), world.shards("test"))
    second = world.join(world.shards("train", tag=1), world.shards("test"), 1, first)
    third = world.join(world.shards("train", tag=2), world.shards("test"), 2, second)
    own = first.facts["pairs"]
    counts = [{t: [r["iteration"] for r in read_rows(ref.path / TRAIN_FILE)].count(t) for t in range(3)} for ref in (first, second, third)]
    assert counts == [{0: own, 1: 0, 2: 0}, {0: own, 1: own, 2: 0}, {0: 0, 1: own, 2: own}]
    assert [ref.facts["carried"] for ref in (first, second, third)] == [0, own, own]


def test_deep_carry_over_takes_each_iterations_own_pairs_once(world: World) -> None:
    """From artifacts that carry others' pairs themselves: a pair that came in twice would count double in training."""
    test, made = world.shards("test"), list[Ref]()
    for t in range(4):
        answers = world.shards("train", lambda found, t=t: [a | {"generated": f"{a['generated']} of {t}"} for a in found], tag=t)
        made.append(world.join(answers, test, t, *reversed(made)))
    found = read_rows(made[3].path / TRAIN_FILE)
    own = made[0].facts["pairs"]
    assert [row["iteration"] for row in found] == [3] * own + [2] * own + [1] * own + [0] * own
    assert all(row["generated"][-1]["content"].endswith(f" of {row['iteration']}") for row in found)
    assert len({(row["row_id"], row["iteration"]) for row in found}) == 4 * own
    assert (made[3].facts["carried"], made[3].facts["pairs"]) == (3 * own, 4 * own)
    two = world.join(world.shards("train", tag=9), test, 3, made[2], made[1])
    assert [row["iteration"] for row in read_rows(two.path / TRAIN_FILE)] == [3] * own + [2] * own + [1] * own


def test_identical_pairs_stay_where_the_loss_has_a_gradient_on_them(world: World) -> None:
    """And an iteration of a loss that has none carries none of them over."""
    left_out = world.join(world.shards("train"), world.shards("test"))
    kept = world.join(world.shards("train"), world.shards("test"), keep=True)
    assert kept.digest != left_out.digest
    assert kept.facts["pairs"] == left_out.facts["pairs"] + left_out.facts["identical"]
    assert kept.facts["identical"] == left_out.facts["identical"]
    assert "kept: " in kept.facts["message"]
    pairs = read_rows(kept.path / TRAIN_FILE)
    assert sum(row["real_ids"] == row["generated_ids"] for row in pairs) == kept.facts["identical"]
    after = world.join(world.shards("train", tag=1), world.shards("test"), 1, kept)
    assert after.facts["carried"] == left_out.facts["pairs"]
    assert not [row for row in read_rows(after.path / TRAIN_FILE) if row["real_ids"] == row["generated_ids"]]


@pytest.mark.parametrize("keep", [False, True])
def test_nothing_but_identical_pairs_is_nothing_to_learn_from(world: World, keep: bool) -> None:
    by_id = {row["row_id"]: world.real_ids(row) for row in world.rows["train"]}
    same = world.shards("train", lambda answers: [{**a, "generated_ids": by_id[a["row_id"]]} for a in answers])
    with pytest.raises(BadInput, match="no pair is left to tell apart"):
        world.join(same, world.shards("test"), keep=keep)


def test_the_pairs_load_as_the_official_trainer_loads_them(world: World) -> None:
    import datasets

    pairs = world.join(world.shards("train"), world.shards("test"))
    files = {"train": str(pairs.path / TRAIN_FILE), "test": str(pairs.path / TEST_FILE)}
    loaded = datasets.load_dataset("parquet", data_files=files)
    folder = datasets.load_dataset(str(pairs.path))  # run_spin.py: load_dataset(folder, split="train")
    for found in (loaded, folder):
        assert {split: len(rows) for split, rows in found.items()} == {"train": pairs.facts["pairs"], "test": pairs.facts["held_out"]}
        assert {"real", "generated"} <= set(found["train"].column_names)
        assert found["train"][0]["real"][0].keys() == {"role", "content"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a[:-1], "are missing"),
        (lambda a: [*a, a[0]], "are there twice"),
        (lambda a: [*a[:3], {**a[3], "row_id": "f" * 16}, *a[4:]], "are missing, first"),
        (lambda a: [a[1], a[0], *a[2:]], "not in the order"),
        (lambda a: [{**a[0], "prompt_ids": [9]}, *a[1:]], "sampled from other prompt tokens"),
    ],
)
def test_shards_that_do_not_fit_are_refused(world: World, change: Any, says: str) -> None:
    with pytest.raises(Corrupt, match=says):
        world.join(world.shards("train", change), world.shards("test"))
    assert not list(world.store.home.glob("artifacts/pairs/*"))


@pytest.mark.parametrize("harm", ["flip", "truncate", "no file", "no folder", "manifest"])
def test_damaged_shards_are_named_and_made_again(world: World, harm: str) -> None:
    """All that is damaged is set aside at once: one more run of `generate` mends everything, and redoes nothing else."""
    shards, test = world.shards("train"), world.shards("test")
    before = {ref: (ref.path / "MANIFEST.json").stat().st_ino for ref in shards}
    for ref in shards[1:3]:
        file = ref.path / "shard.parquet"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        if harm == "flip":
            file.write_bytes(content)
        elif harm == "truncate":
            file.write_bytes(content[:-1])
        elif harm == "no file":
            file.unlink()
        elif harm == "no folder":
            ref.path.rename(ref.path.with_suffix(".away"))
        else:
            (ref.path / "MANIFEST.json").write_text("{")
    with pytest.raises(Corrupt, match=rf"{shards[1].digest}.*1 more of \d+ artifacts.*run again"):
        world.join(shards, test)
    again = world.shards("train")
    assert [before[ref] != (ref.path / "MANIFEST.json").stat().st_ino for ref in again] == [i in (1, 2) for i in range(len(again))]
    assert world.join(again, test).facts["pairs"] > 0


@settings(max_examples=6, deadline=None)
@given(rows=st.integers(30, 60), skipped=st.integers(3, 9), shard_rows=st.integers(1, 30), block=st.integers(1, 40))
def test_how_rows_are_cut_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: int, skipped: int, shard_rows: int, block: int
) -> None:
    """Shard size and block size are speed, not content."""
    world = World(tmp_path_factory.mktemp("world"), rows, skipped, shard_rows)
    out = tmp_path_factory.mktemp("out")
    job: dict[str, Any] = {"iteration": 0, "prompts": str(world.prompts.path), "encoded": str(world.encoded.path), "out": str(out)}
    job |= {split: [str(ref.path) for ref in world.shards(split)] for split in ("train", "test")}
    job |= {"carried": [], "keep_identical": False, "model": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather_job, "_BLOCK", block)
        gather_job._work(job)
    found = pq.read_table(out / TRAIN_FILE, columns=["row_id", "generated"]).to_pylist()
    wanted = [(r, world.answer(r, i)) for i, r in enumerate(world.rows["train"])]
    kept = [(r["row_id"], a["generated"]) for r, a in wanted if a["generated_ids"] and a["generated_ids"] != world.real_ids(r)]
    assert [(row["row_id"], row["generated"][-1]["content"]) for row in found] == kept
