"""Encodings and wrappers: the same rows in every one of them are the same rows, and what cannot be read is named."""

import codecs
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.recipe import DataSettings
from spin_core.runtime.errors import BadInput
from spin_core.sources.locate import Source, suffix
from spin_core.sources.readers import Reader
from spin_core.sources.shapes import to_talk
from spin_core.sources.talk import BadRow
from spin_core.sources.text import as_utf8

ROWS = [{"prompt": f"q{i} é\u2028😀", "response": f"a{i}"} for i in range(5)]
LINES = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n"
PRETTY = json.dumps(ROWS, indent=2, ensure_ascii=False)


def read(file: Path, **more: Any) -> list[Any]:
    return list(Reader(Source("data", (file,)), DataSettings(name="data", **more)))


def written(tmp_path: Path, data: str | bytes, name: str = "data.jsonl") -> Path:
    data = data.encode() if isinstance(data, str) else data
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return tmp_path / name


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES.rstrip(),
        "\n\n" + LINES,
        PRETTY,
        json.dumps(ROWS),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "".join(json.dumps(row) for row in ROWS),
        json.dumps({"data": ROWS}),
        json.dumps({"version": 1, "names": ["a"], "rows": ROWS, "features": [{"name": "prompt"}]}, indent=1),
        json.dumps({"rows": [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(ROWS)]}),
        json.dumps({"test": [{"prompt": "no"}], "train": ROWS}) + "\n",
        json.dumps({"train": ROWS, "none": [], "validation": [{"prompt": "no"}]}, indent=4),
        json.dumps({"our_rows": ROWS}),
    ],
)
def test_every_layout_under_every_name(tmp_path: Path, name: str, text: str) -> None:
    assert read(written(tmp_path, text, name)) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.json.gz"])
def test_every_unicode_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    text = {"a.jsonl": LINES, "a.json": PRETTY, "a.json.gz": PRETTY}.get(name) or "prompt,response\r\n" + "".join(
        f"{row['prompt']},{row['response']}\r\n" for row in ROWS
    )
    assert read(written(tmp_path, text.encode(encoding), name)) == ROWS
    marked = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}.get(encoding, b"")
    assert read(written(tmp_path, marked + text.encode(encoding), name)) == ROWS


@settings(max_examples=50)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(["utf-16", "utf-32", "utf-8-sig"]), st.integers(1, 9)
)
def test_recoding_keeps_every_character(text: str, encoding: str, size: int) -> None:
    handle = as_utf8(io.BufferedReader(io.BytesIO(("{" + text).encode(encoding))))  # type: ignore[arg-type]
    found = b""
    while piece := handle.read(size):
        found += piece
    assert found.decode() == "{" + text


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", LINES), ("a.json", PRETTY), ("a.csv", "prompt,response\nq é,a\n")])
def test_another_encoding_is_named_with_its_byte(tmp_path: Path, name: str, text: str) -> None:
    raw = read(written(tmp_path, text.replace("\u2028😀", "").encode("cp1252"), name))[0]
    with pytest.raises(BadRow, match=r"0xe9, 'é' in Windows-1252: convert the file to UTF-8"):
        to_talk(raw)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "it is gzip: give its name the ending .gz"),
        ("a.jsonl", b"PAR1", "it is a parquet file"),
        ("a.json", b"PK\x03\x04", "zip archive"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("a.parquet", b"ARROW1", "it is an Arrow file"),
        ("a.jsonl", b"<!DOCTYPE html>", "web page"),
        ("a.json", b"\xff\xfe[\x00\xd8", "is cut off after 0 whole rows"),
        ("a.json", '[{"prompt": "q", "response": "a",}]', "after row 0: not valid JSON"),
        ("a.json", '{"data": [{"prompt": "q"}, {"prompt": "q"]}', "after row 0: not valid JSON"),
        ("a.json", '{\n "prompt": "q"\n "response": "a"\n}', "after row 0: not valid JSON"),
        ("a.json", '{"data": [{"prompt": "q"}]} {}', "something follows the object"),
        ("a.json", '{"test": [{"prompt": "q"}], "dev": [{"prompt": "q"}]}', "no split train; set data.split to one of dev, test"),
        ("a.csv", "prompt,prompt\nq,a\n", "two columns have the name 'prompt'"),
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path: Path, name: str, data: str | bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read(written(tmp_path, data, name))


@pytest.mark.parametrize("line", ["hello", '{"prompt": "q", "response": "a",}', "{'prompt': 'q'}", '{"prompt": "q" "response": "a"}'])
def test_a_wrong_last_line_is_no_cut_one(tmp_path: Path, line: str) -> None:
    """`data.on_truncated=keep` is no remedy for it."""
    found = read(written(tmp_path, json.dumps(ROWS[0]) + "\n" + line))
    assert found[0] == ROWS[0]
    assert str(found[1]).startswith("not valid JSON")


def test_what_a_cut_file_holds_is_read(tmp_path: Path) -> None:
    for data, name in ((LINES.encode("utf-16") + b"x", "a.jsonl"), (gzip.compress(LINES.encode())[:-9], "a.jsonl.gz")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInput, match="is cut off after"):
            read(tmp_path / name)
        found = read(tmp_path / name, on_truncated="keep")
        assert found == ROWS[: len(found)]
        assert found or name.endswith("gz")


def test_bare_conversations(tmp_path: Path) -> None:
    """One list of turns a line."""
    talks = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}] for i in range(3)]
    for text in ("\n".join(map(json.dumps, talks)), json.dumps(talks)):
        assert [to_talk(row).messages for row in read(written(tmp_path, text))] == talks


def test_a_wrong_first_line_costs_its_row_only(tmp_path: Path) -> None:
    for line in ('{"prompt": "q"', '{"prompt": "q', '{"a" 1}', "{"):
        found = read(written(tmp_path, line + "\n" + LINES))
        assert [isinstance(row, BadRow) for row in found] == [True] + [False] * 5, line


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiters_of_spreadsheets(tmp_path: Path, delimiter: str) -> None:
    text = f"instruction{delimiter}input{delimiter}output\r\n1{delimiter}{delimiter}3\r\n"
    assert read(written(tmp_path, text, "a.csv")) == [{"instruction": "1", "input": "", "output": "3"}]


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_columnar_file_gives_what_has_to_be_judged(tmp_path: Path, ending: str) -> None:
    """Numbers, ids and other known harmless columns are not read; texts of unknown names and marks are."""
    row = ROWS[0] | {
        "context2": "c",
        "label": False,
        "input": None,
        "id": "x",
        "score_a": "5",
        "embedding": [0.5],
        "generated": "g",
        "gone": "i",
    }
    table = pa.Table.from_pylist([row, row])
    file = tmp_path / f"a{ending}"
    if ending == ".parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_file(str(file), table.schema) as sink:
            sink.write_table(table)
    wanted = {name: row[name] for name in ("prompt", "response", "context2", "label")}
    assert read(file, ignore_columns=["gone"]) == [wanted, wanted]
    assert suffix(file) == ending


def test_a_great_wrapped_file_streams(tmp_path: Path) -> None:
    """One line of 40 MB is not one row of 40 MB."""
    import tracemalloc

    row = json.dumps({"prompt": "q" * 1000, "response": "a" * 1000})
    with (tmp_path / "a.json").open("w") as handle:
        handle.write('{"data": [' + ", ".join([row] * 20_000) + "]}")
    tracemalloc.start()
    assert sum(1 for _ in Reader(Source("a", (tmp_path / "a.json",)), DataSettings(name="a"))) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6
