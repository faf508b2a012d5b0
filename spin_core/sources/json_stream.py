"""JSON of every layout row by row, with no more than one row and a chunk in memory.

Lines (one value a line), an array, objects one after another however they are printed, and an object that wraps lists of
rows (`{"data": […]}`, `{"train": […], "test": […]}`) all give their rows; which of them a text is, is found from its beginning.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from typing import IO, Any, Literal

from spin_core.sources.columns import COMPANIONS, CONVERSATION, OTHER_SIDE
from spin_core.sources.talk import BadRow, foreign_byte, is_turn
from spin_core.sources.text import Broken, CutOff

_SPACE = re.compile(r"[ \t\n\r]*")
_AFTER_A_VALUE = (*" \t\n\r,]}",)
_LONGEST_TOKEN = 12  # characters of "\ud83d\ude00": an error nearer than this to the end may be that of a cut token
_CUT_TOKEN = re.compile(r",?|-|\.?\d*(?:[eE][-+]?)?")  # of a number, what its first half leaves over
_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_CHUNK = 1 << 20
_HEAD = 1 << 16  # bytes that tell the layout, where the first line is not longer
_A_ROW = CONVERSATION | COMPANIONS | OTHER_SIDE  # lists under these names are part of a row

Layout = Literal["array", "lines", "objects", "wrapped"]


def layout_of(opened: Callable[[], IO[bytes]]) -> Layout:
    """How the rows of a JSON text stand in it, from a first look; `opened` gives its UTF-8 bytes from the beginning."""
    try:
        head = opened().read(_HEAD).lstrip()
    except (EOFError, CutOff):  # a cut file that is shorter than the first look
        head = _readable(opened())
    if head[:1] not in (b"{", b"["):
        return "lines"
    first, newline, rest = head.partition(b"\n")
    alone, second = _is_json(first), rest.lstrip().partition(b"\n")[0]
    if second and (alone or (head[:1] == b"{" and _is_json(second))):
        return "lines"
    if head[:1] == b"[":
        return "array"
    try:
        inside = _inside(_Window(_text(opened()), _HEAD))
    except Broken:
        if newline and not alone and _is_cut(first):
            raise  # printed over several lines, and wrong: no line of it is a row
        return "lines"
    except (CutOff, EOFError):
        inside = "row"
    if inside == "wrapped":
        return "wrapped"
    return "lines" if alone or not (newline or len(head) < _HEAD) else "objects"


def _readable(handle: IO[bytes]) -> bytes:
    found = b""
    try:
        while piece := handle.read(1):
            found += piece
            if piece == b"\n" and found.strip():
                break
    except (EOFError, CutOff):
        pass
    return found.lstrip()


def _text(handle: IO[bytes]) -> IO[str]:
    # a byte that is no UTF-8 becomes a lone surrogate, which the row's own check names
    return io.TextIOWrapper(handle, encoding="utf-8", errors="surrogateescape", newline="")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_cut(line: bytes) -> bool:
    """Whether a line that is no JSON value might be the beginning of one."""
    text = line.decode("utf-8", "replace").rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return _ends_early(error, text)
    except (ValueError, RecursionError):
        pass
    return False


def _ends_early(error: json.JSONDecodeError, text: str) -> bool:
    """Whether a text fails only because it ends too soon: more of it might be a value."""
    if error.msg.startswith("Unterminated string"):
        return True
    rest = text[error.pos :].strip()
    if len(rest) > _LONGEST_TOKEN:
        return False
    return error.msg.startswith("Invalid \\") or bool(_CUT_TOKEN.fullmatch(rest)) or any(word.startswith(rest) for word in _WORDS)


def _inside(window: _Window) -> Literal["wrapped", "row"]:
    """Whether the object at the window's beginning wraps lists of rows."""
    for key in window.names():
        if key not in _A_ROW and window.peek() == "[":
            window.skip()
            if window.peek() == "{":
                return "row" if is_turn(window.value()) else "wrapped"
            if window.peek() == "]":
                window.skip()
                continue
            for _ in window.rest_of_array():
                pass
        else:
            window.value()
    return "row"


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
        except UnicodeDecodeError as error:
            yield BadRow(f"not UTF-8 at byte {error.start} {foreign_byte(error.object[error.start])}")
        except json.JSONDecodeError as error:
            # only the last line can lack its end; a row that is cut off begins as one
            if not line.endswith(b"\n") and line.lstrip()[:1] == b"{" and _ends_early(error, error.doc):
                raise CutOff from None
            yield BadRow(f"not valid JSON: {error}")
        except ValueError as error:  # a number with thousands of digits
            yield BadRow(f"not valid JSON: {error}")


def json_array(handle: IO[bytes] | IO[str], chunk: int = _CHUNK) -> Iterator[Any]:
    """The values of a JSON array one by one, those before a cut too.

    Raises CutOff if the text ends before the array does, Broken if it is no JSON array.
    """
    window = _Window(handle if isinstance(handle, io.TextIOBase) else _text(handle), chunk)  # type: ignore[arg-type]
    if window.peek() != "[":
        raise Broken("it is not a JSON array of rows")
    window.skip()
    yield from window.rest_of_array()
    if window.peek():
        raise Broken("something follows the array")


def json_objects(handle: IO[bytes]) -> Iterator[Any]:
    """JSON values one after another, each over as many lines as it likes."""
    window = _Window(_text(handle), _CHUNK)
    while window.peek():
        yield window.value()


def wrapped_names(handle: IO[bytes]) -> list[str]:
    """The names under which an object holds lists of rows."""
    return list(dict.fromkeys(name for name, _ in _wrapped(handle)))


def json_wrapped(handle: IO[bytes], names: list[str]) -> Iterator[Any]:
    """The rows of an object's lists of these names."""
    for name, row in _wrapped(handle):
        if name in names:
            yield row


def _wrapped(handle: IO[bytes]) -> Iterator[tuple[str, Any]]:
    window = _Window(_text(handle), _CHUNK)
    for key in window.names():
        if window.peek() != "[":
            window.value()
            continue
        window.skip()
        for number, value in zip(count(), window.rest_of_array(), strict=False):
            if number == 0 and not isinstance(value, dict):
                for _ in window.rest_of_array(begun=True):  # names, counts: no rows
                    pass
                break
            yield key, value
    if window.peek():
        raise Broken("something follows the object that wraps its rows")


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

    def names(self) -> Iterator[str]:
        """The names in the object that comes next; whoever takes one reads its value before the next one."""
        if self.peek() != "{":
            raise Broken("it is not a JSON object")
        self.skip()
        if self.peek() == "}":
            self.skip()
            return
        separator = ","
        while separator == ",":
            key = self.value()
            self._demand(":", "a name")
            yield str(key)
            separator = self.peek()
            self.skip()
        if separator != "}":
            raise CutOff if not separator else Broken(f"not valid JSON: {separator!r} follows a value")

    def _demand(self, wanted: str, after: str) -> None:
        found = self.peek()
        if found != wanted:
            raise CutOff if not found else Broken(f"not valid JSON: {found!r} follows {after}")
        self.skip()

    def rest_of_array(self, begun: bool = False) -> Iterator[Any]:
        """The values of an array whose bracket was read, to its end; `begun`: the first value was read, too."""
        if not begun and self.peek() == "]":
            self.skip()
            return
        separator = ","
        if begun:
            separator = self.peek()
            self.skip()
        while separator == ",":
            yield self.value()
            separator = self.peek()
            self.skip()
        if separator != "]":
            raise CutOff if not separator else Broken(f"not valid JSON: {separator!r} follows a row")

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
                if not _ends_early(error, self._text):
                    raise Broken(f"not valid JSON: {error.msg}") from None
                if self._ended:
                    raise CutOff from None
            except RecursionError:
                raise Broken("it is nested too deeply") from None
            self._more(size)
            size *= 2
