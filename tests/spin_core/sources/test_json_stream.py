"""The streaming readers against the standard library's own."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.sources.json_stream import json_array, json_lines
from spin_core.sources.talk import BadRow
from spin_core.sources.text import Broken, CutOff

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def read(text: str, chunk: int) -> tuple[list[Any], str]:
    found: list[Any] = []
    try:
        for value in json_array(io.StringIO(text), chunk):
            found.append(value)
    except (CutOff, Broken) as error:
        return found, type(error).__name__
    return found, ""


@given(st.lists(VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_an_array_is_what_json_loads_says(rows: list[Any], chunk: int, indent: Any, escaped: bool) -> None:
    """Rows that differ with where a chunk ends would be silent damage."""
    text = json.dumps(rows, indent=indent, ensure_ascii=escaped)
    assert read(text, chunk) == (json.loads(text), "")


@settings(max_examples=200)
@given(st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=2), min_size=1, max_size=5), st.integers(1, 40), st.data())
def test_a_cut_array_gives_the_rows_before_the_cut(rows: list[Any], chunk: int, data: st.DataObject) -> None:
    text = json.dumps(rows)
    found, end = read(text[: data.draw(st.integers(1, len(text) - 1))], chunk)
    assert end == "CutOff"
    assert found == rows[: len(found)]


@given(st.lists(VALUES, max_size=3), st.integers(1, 40), st.text('[]{},:1"tn ', min_size=1, max_size=3), st.data())
def test_a_damaged_array_is_never_taken_for_a_whole_one(rows: list[Any], chunk: int, harm: str, data: st.DataObject) -> None:
    text = json.dumps(rows)
    place = data.draw(st.integers(0, len(text)))
    text = text[:place] + harm + text[place:]
    try:
        wanted: Any = json.loads(text)
    except ValueError:
        wanted = None
    found, end = read(text, chunk)
    if isinstance(wanted, list):
        assert (found, end) == (wanted, "")
    else:
        assert end


def test_a_syntax_error_is_found_without_reading_on() -> None:
    """Reading on in the hope of a repair would take a whole file into memory."""
    handle = io.StringIO('[{"a": 1}, {"a" 2}' + " " * 100_000)
    with pytest.raises(Broken, match="not valid JSON"):
        list(json_array(handle, 64))
    assert handle.tell() < 1000


def test_lines() -> None:
    text = b'\xef\xbb\xbf{"a": 1}\r\n\n{"b": "\xe2\x80\xa8"}\n{"c"\n"\xff"\n' + b"[" * 100_000 + b"\n{}"
    found = list(json_lines(io.BytesIO(text)))
    assert found[:2] == [{"a": 1}, {"b": "\u2028"}]
    assert [str(row).split(":")[0] for row in found[2:5]] == [
        "not valid JSON",
        "not UTF-8 at byte 1 (byte 0xff, 'ÿ' in Windows-1252",
        "nested too deeply",
    ]
    assert all(isinstance(row, BadRow) for row in found[2:5])
    assert found[5:] == [{}]
