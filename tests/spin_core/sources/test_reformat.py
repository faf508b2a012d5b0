"""The stage: every fault is named, the split is that of the content, and no held-out context is trained on."""

import csv
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.contracts.rows import row_id
from spin_core.contracts.tables import read_rows
from spin_core.recipe import DataSettings
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.sources import job, order
from spin_core.sources.order import Sorter, Split, draw, without_duplicates
from spin_core.store import Ref, Store
from tests.stages import reformat


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's own code, without the half second that a child takes to start; test_a_child_does_it has the child."""
    monkeypatch.setattr(process, "run_job", lambda _module, work, *_, **__: job._work(work))


def pair(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]}


def run_file(tmp_path: Path, file: Path, **settings: Any) -> Ref:
    return reformat(Store(tmp_path / "home"), DataSettings(name=str(file), **({"test_size": 1} | settings)))


def run(tmp_path: Path, text: str | bytes, suffix: str = ".jsonl", **settings: Any) -> Ref:
    file = tmp_path / f"data{suffix}"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return run_file(tmp_path, file, **settings)


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def ids(ref: Ref) -> dict[str, list[str]]:
    return {split: [r["row_id"] for r in read_rows(ref.path / f"{split}.parquet")] for split in ("train", "test")}


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    """The split is that of the content: neither format nor order may move a row to the other side."""
    rows = [pair(i) for i in range(30)]
    wanted = ids(run(tmp_path, lines(*rows), test_size=8))
    assert {split: len(found) for split, found in wanted.items()} == {"train": 22, "test": 8}
    random.Random(0).shuffle(rows)
    flat = [{"prompt": r["messages"][0]["content"], "response": r["messages"][1]["content"]} for r in rows]
    table = pa.Table.from_pylist(rows)

    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "lines.json").write_text(lines(*rows))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(*rows).encode()))
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as sink:
        sink.write_table(table, max_chunksize=7)
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as sink:
        sink.write_table(table, max_chunksize=7)
    with (tmp_path / "a.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["prompt", "response", "source"])
        writer.writeheader()
        writer.writerows({**row, "source": "two\nlines"} for row in flat)
    (tmp_path / "folder" / "train").mkdir(parents=True)
    (tmp_path / "folder" / "test").mkdir()
    (tmp_path / "folder" / "test" / "0.jsonl").write_text(lines(pair(99)))
    for part in (0, 1):
        pq.write_table(table[part * 15 : (part + 1) * 15], tmp_path / "folder" / "train" / f"{part}.parquet")

    for name in ("a.json", "lines.json", "a.json.gz", "a.jsonl.gz", "a.parquet", "file.arrow", "stream.arrow", "a.csv", "folder"):
        assert ids(run_file(tmp_path, tmp_path / name, test_size=8)) == wanted, name


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    """What `Dataset.save_to_disk` writes, and what the hub's `load_dataset` reads, is a folder that works here."""
    import datasets

    rows = [pair(i) for i in range(12)]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list([pair(50)])}).save_to_disk(
        tmp_path / "saved"
    )
    assert ids(run_file(tmp_path, tmp_path / "saved", test_size=3)) == ids(run(tmp_path, lines(*rows), test_size=3))


def test_a_run_may_start_from_published_pairs(tmp_path: Path) -> None:
    """The folder layout of UCLA-AGI/SPIN_iter0: the human conversations are taken, those of the other split are not."""
    rows = [{"real": pair(i)["messages"], "generated": [*pair(i)["messages"][:1], {"role": "assistant", "content": "?"}]} for i in range(9)]
    (tmp_path / "iter0").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:8]), tmp_path / "iter0" / "train_prefs-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows[8:]), tmp_path / "iter0" / "test_prefs-00000-of-00001.parquet")
    assert ids(run_file(tmp_path, tmp_path / "iter0", test_size=2)) == ids(run(tmp_path, lines(*map(pair, range(8))), test_size=2))
    held_out = run_file(tmp_path, tmp_path / "iter0" / "train_prefs-00000-of-00001.parquet", subset=4, split="test")
    assert held_out.facts["train"] == 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": "q"}]}, "no answer"),
        ({"prompt": "q"}, "no answer"),
        ({"prompt": "q", "response": "  "}, "no answer"),
        ({"messages": [{"role": "user", "content": "q"}] * 2 + pair(0)["messages"]}, "role order"),
        ({"text": "q"}, "shape is not known: keys text"),
        ({"prompt": "q", "response": "\ud800"}, "not valid UTF-8"),
        ([1], "not an object"),
        (pair(1), "duplicate"),
    ],
)
def test_bad_rows_are_named_or_listed(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(BadInput, match=f"row 2: .*{reason}") as caught:
        run(tmp_path, lines(pair(1), row, pair(2)))
    assert "on_bad_row=skip" in str(caught.value)
    ref = run(tmp_path, lines(pair(1), row, pair(2)), on_bad_row="skip")
    assert [(r["row_number"], reason in r["reason"]) for r in read_rows(ref.path / "rejected.parquet")] == [(2, True)]
    assert "3 rows read: 1 to train on, 1 held out, 1 left out (1 " in ref.facts["message"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_broken_byte_costs_its_row_only(tmp_path: Path, suffix: str) -> None:
    good = [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(3)]
    text = {
        ".jsonl": lines(*good).encode(),
        ".json": json.dumps(good).encode(),
        ".csv": b"prompt,response\n" + b"".join(f"{r['prompt']},{r['response']}\n".encode() for r in good),
    }[suffix]
    ref = run(tmp_path, text.replace(b"a1", b"a\xff"), suffix, on_bad_row="skip")
    rejected = read_rows(ref.path / "rejected.parquet")
    assert [row["row_number"] for row in rejected] == [2]
    assert "UTF-8" in rejected[0]["reason"]


@pytest.mark.parametrize(("suffix", "cut"), [(".json", 7), (".json", 1), (".jsonl", 7), (".jsonl.gz", 12), (".csv", 3)])
def test_a_truncated_file_is_said_so(tmp_path: Path, suffix: str, cut: int) -> None:
    rows = [pair(i) for i in range(5)]
    text = (json.dumps(rows) if suffix == ".json" else lines(*rows)).encode()
    if suffix == ".csv":
        text = b'prompt,response\n"q","a"\n"r","b"\n"s","c"\n"t","d"\n"u","eee"\n'
    if suffix == ".jsonl.gz":
        text = gzip.compress(lines(*rows, *({"prompt": f"{i}", "response": f"{i**9}"} for i in range(9999))).encode())
    text = text[:-cut]
    with pytest.raises(BadInput, match=r"is cut off after [\d,]+ whole rows; set data\.on_truncated=keep"):
        run(tmp_path, text, suffix)
    ref = run(tmp_path, text, suffix, on_truncated="keep")
    assert ref.facts["truncated"]
    assert "is cut off at its end" in ref.facts["message"]
    if not suffix.endswith(".gz"):
        assert ref.facts["train"] + ref.facts["test"] == (5 if cut == 1 else 4)


@pytest.mark.parametrize(
    ("text", "suffix", "says"),
    [
        ("[" * 200_000, ".json", "nested too deeply"),
        ('[{"prompt": "q" "response": 1}, {}]', ".json", "after row 0: not valid JSON"),
        (json.dumps([pair(1)]) + json.dumps([pair(2)]), ".json", "something follows the array"),
        ("hello", ".json", "not a JSON array"),
        ("hello", ".jsonl.gz", "not gzip"),
        ("hello", ".parquet", "not a whole parquet file"),
        ("hello", ".arrow", "not a whole Arrow file"),
        ("", ".jsonl", "holds no rows"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, text: str, suffix: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        run(tmp_path, text, suffix)
    assert "\n" not in str(caught.value)


def test_a_child_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow's memory must not hold a data set; the child's errors arrive as they were raised."""
    monkeypatch.undo()
    assert run(tmp_path, lines(*map(pair, range(3)))).facts["train"] == 2
    with pytest.raises(BadInput, match=r"row 2: not an object; mend it, or set data\.on_bad_row=skip"):
        run(tmp_path, lines(pair(1), [1]))


def test_nothing_is_written_for_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        run(tmp_path, lines(pair(1), {"prompt": "q"}))
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file() and p.suffix != ".log"]


def test_contexts_stay_on_one_side(tmp_path: Path) -> None:
    """A held-out prompt with a second answer in train would make the held-out numbers a lie."""
    other = {"prompt": "q0", "response": "another"}
    ref = run(tmp_path, lines(pair(0), other, *map(pair, range(1, 20))), test_size=10)
    contexts = {s: {row_id(r["real"][:-1]) for r in read_rows(ref.path / f"{s}.parquet")} for s in ("train", "test")}
    assert not contexts["train"] & contexts["test"]


def test_each_turn_becomes_a_row_and_conversations_stay_whole(tmp_path: Path) -> None:
    """A later turn's context contains the earlier answers: in train, it would show the held-out ones."""
    talks = [{"messages": [*pair(i)["messages"], *pair(100 + i)["messages"], *pair(200 + i)["messages"]]} for i in range(20)]
    ref = run(tmp_path, lines(*talks), turns="each", test_size=10)
    rows = {split: read_rows(ref.path / f"{split}.parquet") for split in ("train", "test")}
    assert sorted(len(r["real"]) for r in rows["train"] + rows["test"]) == [2] * 20 + [4] * 20 + [6] * 20
    first = {split: {r["real"][0]["content"] for r in found} for split, found in rows.items()}
    assert not first["train"] & first["test"]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=120),
    st.integers(1, 20),
    st.integers(0, 20),
    st.none() | st.integers(2, 40),
    st.randoms(),
)
def test_the_split_is_a_function_of_the_set_of_rows(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: list[int],
    test_size: int,
    validation_size: int,
    subset: int | None,
    rng: random.Random,
) -> None:
    """Order, copies and how often the sorter spills to disk change nothing; test comes first, then validation; contexts are never
    shared. What is held out, and all that is used, is the same with validation rows and without.
    """

    def sides(order_of_rows: list[int], pending: int, validation_size: int) -> tuple[list[str], list[str], list[str], int]:
        patch.setattr(order, "_PENDING_CHARS", pending)
        sorter, split = Sorter(tmp_path_factory.mktemp("sorter")), Split(test_size, validation_size, subset)
        for number, value in enumerate(order_of_rows, 1):
            talk = [{"role": "user", "content": f"{value // 2}"}, {"role": "assistant", "content": f"{value}"}]
            sorter.add(number, talk, draw(talk[:-1], 7), None)
        found: tuple[list[str], list[str], list[str]] = ([], [], [])
        again = 0
        for table in sorter:
            table, repeated = without_duplicates(table)
            assert all(order_of_rows[a - 1] == order_of_rows[b - 1] and a > b for a, b in repeated)
            again += len(repeated)
            for side, part in zip(found, split.cut(table), strict=True):
                side.extend(row["real"][1]["content"] for row in part.to_pylist())
        return *found, again

    with pytest.MonkeyPatch.context() as patch:
        test, validation, train, again = sides(numbers, 1 << 20, validation_size)
        used = test + validation + train
        assert again == len(numbers) - len(set(numbers))
        assert len(used) == len(set(used)) == min(len(set(numbers)), subset or 10**9)
        contexts = [{int(v) // 2 for v in side} for side in (test, validation, train)]
        assert sum(map(len, contexts)) == len(set.union(*contexts))
        for rows, size in ((test, test_size), (validation, validation_size)):
            assert len(rows) >= min(size, len(used) - len(test) * (rows is validation))
            assert len({int(v) // 2 for v in rows[:-1]}) <= size
        assert sides(numbers, 1 << 20, 0)[:3] == (test, [], validation + train)
        rng.shuffle(numbers)
        assert sides(numbers, 900, validation_size)[:3] == (test, validation, train)


def test_validation_rows_have_a_file_of_their_own_where_they_are_asked_for(tmp_path: Path) -> None:
    """Held-out rows stay, or figures of campaigns with and without a choice could not be compared."""
    text = lines(*map(pair, range(20)))
    plain, chosen = run(tmp_path, text, test_size=5), run(tmp_path, text, test_size=5, validation_size=4)
    assert not (plain.path / "validation.parquet").exists()
    validation = [row["row_id"] for row in read_rows(chosen.path / "validation.parquet")]
    assert len(validation) == chosen.facts["validation"] == 4
    assert ids(chosen)["test"] == ids(plain)["test"]
    assert sorted(ids(chosen)["train"] + validation) == sorted(ids(plain)["train"])
    assert "5 held out, 4 to choose on" in chosen.facts["message"]
    with pytest.raises(BadInput, match=r"data\.test_size=5 and data\.validation_size=15 leave none to train on; lower them"):
        run(tmp_path, text, test_size=5, validation_size=15)


def test_one_context_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none is left to train on"):
        run(tmp_path, lines(*({"prompt": "q", "response": answer} for answer in "abc")))


def test_demo_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"lower data\.subset"):
        reformat(Store(tmp_path), DataSettings(name="demo", subset=100_000))


def test_facts_count_duplicates(tmp_path: Path) -> None:
    facts = run(tmp_path, lines(pair(0), pair(0), pair(1)), on_bad_row="skip").facts
    assert (facts["rows"], facts["duplicates"], facts["train"] + facts["test"]) == (3, 1, 2)
    assert facts["message"] == "3 rows read: 1 to train on, 1 held out, 1 left out (1 duplicate)"


def formats(folder: Path, rows: list[dict[str, Any]]) -> Iterator[Path]:
    """The rows in each format that has types."""
    (folder / "a.jsonl").write_text(lines(*rows))
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "a.parquet")
    with pa.ipc.new_stream(str(folder / "a.arrow"), table.schema) as sink:
        sink.write_table(table)
    yield from (folder / f"a{ending}" for ending in (".jsonl", ".json", ".json.gz", ".parquet", ".arrow"))


def all_rows(ref: Ref) -> list[dict[str, Any]]:
    return [row for side in ("train", "test") for row in read_rows(ref.path / f"{side}.parquet")]


def test_absence_in_every_format(tmp_path: Path) -> None:
    """A NaN that pandas wrote is no text, neither in a question nor as an answer."""
    nan = float("nan")
    rows: list[dict[str, Any]] = [{"instruction": f"q{i}", "input": nan if i % 2 else None, "output": f"a{i}"} for i in range(4)]
    rows.append({"instruction": "q4", "input": None, "output": None})
    for file in formats(tmp_path, rows):
        ref = run_file(tmp_path, file, on_bad_row="skip")
        assert {row["real"][0]["content"] for row in all_rows(ref)} == {"q0", "q1", "q2", "q3"}, file
        assert ref.facts["reasons"] == {"no answer": 1}
    rows = [{"instruction": f"q{i}", "input": f"{i}", "output": nan} for i in range(3)]
    for file in formats(tmp_path, rows):
        with pytest.raises(BadInput, match="row 1: no answer"):
            run_file(tmp_path, file)
    ref = run(tmp_path, "instruction,input,output\nq,,a\nr,nan,b\ns,NaN,c\n", ".csv")
    assert sorted(row["real"][0]["content"] for row in all_rows(ref)) == ["q", "r\n\nnan", "s\n\nNaN"], "in a text file it is text"


def test_companions_and_refusals_in_every_format(tmp_path: Path) -> None:
    """A format that reads fewer columns would lose a passage, or a tool call, without a word."""
    rows: list[dict[str, Any]] = [{"instruction": f"q{i}", "context": f"c{i}", "response": f"a{i}", "category": "x"} for i in range(4)]
    for file in formats(tmp_path, rows):
        assert {row["real"][0]["content"] for row in all_rows(run_file(tmp_path, file))} == {f"q{i}\n\nc{i}" for i in range(4)}, file
    rows = [row | {"context2": "d", "thoughts": None} for row in rows]
    for file in formats(tmp_path, rows):
        with pytest.raises(
            BadInput, match=r"row 1: column 'context2' not understood \(data.ignore_columns=\[context2\] reads on without\); mend it"
        ):
            run_file(tmp_path, file)
        with pytest.raises(BadInput, match=r"0 usable rows .* 4 were left out, 4 of them like row 1: column 'context2' not understood"):
            run_file(tmp_path, file, on_bad_row="skip")
        assert run_file(tmp_path, file, ignore_columns=["context2"]).facts["train"] == 3
    calls: list[dict[str, Any]] = [pair(i) for i in range(3)]
    calls[1]["messages"][1]["tool_calls"] = [{"id": "c"}]
    calls[2]["messages"][1]["weight"] = 0
    for file in formats(tmp_path, calls):
        with pytest.raises(BadInput, match="row 2: field 'tool_calls' of turn 2 not understood"):
            run_file(tmp_path, file)
        with pytest.raises(BadInput, match="row 3: no answer may be learned"):
            run_file(tmp_path, file, ignore_columns=["tool_calls"])
        ref = run_file(tmp_path, file, ignore_columns=["tool_calls", "weight"])
        assert len(all_rows(ref)) == 3


def test_a_check_is_validated_where_it_is_read(tmp_path: Path) -> None:
    """One that can never be scored would be found after the first iteration was trained."""
    good = [pair(i) | {"check": {"kind": "exact", "value": f"a{i}"}} for i in range(3)]
    for file in formats(tmp_path, good):
        assert sorted(json.loads(row["check"])["value"] for row in all_rows(run_file(tmp_path, file))) == ["a0", "a1", "a2"]
    bad = [*good, pair(9) | {"check": {"kind": "exakt", "value": "a9"}}]
    for file in formats(tmp_path, bad):
        with pytest.raises(BadInput, match=r"row 4: its check of kind 'exakt' is not known \(known: exact, number, regex, .*\); mend it"):
            run_file(tmp_path, file)
        assert len(all_rows(run_file(tmp_path, file, on_bad_row="skip"))) == 3
        assert all(row["check"] is None for row in all_rows(run_file(tmp_path, file, ignore_columns=["check"])))
    with pytest.raises(BadInput, match="row 1: its check is text that is not JSON"):
        run(tmp_path, lines(pair(0) | {"check": "yes"}))


def test_a_check_is_one_of_the_last_answer(tmp_path: Path) -> None:
    talk = {"messages": [*pair(0)["messages"], *pair(1)["messages"]], "check": {"kind": "exact", "value": "a1"}}
    rows = all_rows(run(tmp_path, lines(talk, pair(3), pair(4)), turns="each"))
    assert sorted((len(row["real"]), row["check"] is not None) for row in rows) == [(2, False), (2, False), (2, False), (4, True)]
