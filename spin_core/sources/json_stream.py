"""JSON arrays and JSON lines row by row, with no more than one row and a chunk in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from spin_core.sources.shapes import BadRow

_SPACE = re.compile(r"[ \t\n\r]*")
_AFTER_A_VALUE = (*" \t\n\r,]",)
_LONGEST_TOKEN = 12  # characters of "\ud83d\ude00": an error nearer than this to the end may be that of a cut token


class CutOff(Exception):
    """The text ends before its last row does."""


class Broken(Exception):
    """The text is not JSON, and where the next row begins cannot be told."""


def json_lines(handle: IO[bytes]) -> Iterator[Any]:
    """One value a line; a line that cannot be read is a BadRow.

    Raises CutOff at the end if the last line is not whole.
    """
    for number, line in enumerate(handle):
        if line.isspace():
            continue
        try:
            yield json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8"))
        except RecursionError:
            yield BadRow("nested too deeply")
        except ValueError as error:
            if not line.endswith(b"\n"):  # only the last line can lack it
                raise CutOff from None
            yield BadRow(f"not UTF-8 at byte {error.start}" if isinstance(error, UnicodeDecodeError) else f"not valid JSON: {error}")


def json_array(handle: IO[str], chunk: int = 1 << 20) -> Iterator[Any]:
    """The values of a JSON array one by one, those before a cut too.

    Raises CutOff if the text ends before the array does, Broken if it is no JSON array.
    """
    window = _Window(handle, chunk)
    if window.peek() != "[":
        raise Broken("it is not a JSON array of rows")
    window.skip()
    if window.peek() == "]":
        window.skip()
    else:
        separator = ","
        while separator == ",":
            yield window.value()
            separator = window.peek()
            window.skip()
        if separator != "]":
            raise CutOff if not separator else Broken(f"not valid JSON: {separator!r} follows a row")
    if window.peek():
        raise Broken("something follows the array")


class _Window:
    """The part of the text that is being parsed."""

    def __init__(self, handle: IO[str], chunk: int) -> None:
        self._handle, self._chunk = handle, chunk
        self._decoder = json.JSONDecoder()
        self._text, self._position, self._ended = "", 0, False

    def _more(self, size: int) -> None:
        piece = self._handle.read(size)
        self._text, self._position = self._text[self._position :] + piece, 0
        self._ended = not piece

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._position)
            assert found is not None
            self._position = found.end()
            if self._position < len(self._text) or self._ended:
                return self._text[self._position : self._position + 1]
            self._more(self._chunk)

    def skip(self) -> None:
        """Steps over the character that `peek` returned."""
        self._position += 1

    def value(self) -> Any:
        """The next value. A row longer than the window is tried again with twice the text, so the work stays linear."""
        self.peek()
        size = self._chunk
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
                # "0." in a window is 0 to the decoder and may be 0.5 with the next chunk
                if self._text[end : end + 1] in _AFTER_A_VALUE or len(self._text) - end >= _LONGEST_TOKEN or self._ended:
                    self._position = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_TOKEN
                if not cut:
                    raise Broken(f"not valid JSON: {error.msg}") from None
                if self._ended:
                    raise CutOff from None
            except RecursionError:
                raise Broken("it is nested too deeply") from None
            self._more(size)
            size *= 2
