"""Bytes of a text file as UTF-8, whatever Unicode encoding they are in; what is no text is named."""

from __future__ import annotations

import codecs
import io
from typing import IO

_BOMS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_NOT_TEXT = (
    (b"\x1f\x8b", "it is gzip: give its name the ending .gz"),
    (b"PAR1", "it is a parquet file: give its name the ending .parquet"),
    (b"ARROW1", "it is an Arrow file: give its name the ending .arrow"),
    (b"PK\x03\x04", "it is a zip archive: unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd: unpack it"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the data: run git lfs pull"),
    (b"<!DOCTYPE", "it is a web page"),
    (b"<html", "it is a web page"),
)
_CHUNK = 1 << 16


class CutOff(Exception):
    """The text ends before its last row does."""


class Broken(Exception):
    """The text cannot be read, and where the next row begins cannot be told."""


def demand_data(head: bytes, ending: str) -> None:
    """Raises Broken if a file's first bytes are those of another format than its name says."""
    own = {".parquet": b"PAR1", ".arrow": b"ARROW1"}.get(ending)
    for magic, reason in _NOT_TEXT:
        if head.startswith(magic) and magic != own:
            raise Broken(reason)


def as_utf8(handle: IO[bytes]) -> IO[bytes]:
    """The same text as UTF-8 without a byte-order mark. Bytes that are no UTF-8 stay as they are, for the row to name."""
    head = handle.peek(64)  # type: ignore[attr-defined]  # BufferedReader and GzipFile have it
    demand_data(head, "")
    mark, encoding = next(((bom, name) for bom, name in _BOMS if head.startswith(bom)), (b"", _guess(head)))
    handle.read(len(mark))
    return handle if encoding == "utf-8" else io.BufferedReader(_Recoded(handle, encoding), _CHUNK)


def _guess(head: bytes) -> str:
    """UTF-16 and UTF-32 without a mark: a data file's first character is ASCII, so its other bytes are zero."""
    zeros = [byte == 0 for byte in head[:4]]
    if zeros in ([False, True, True, True], [True, True, True, False]):
        return "utf-32-be" if zeros[0] else "utf-32-le"
    if len(zeros) > 1 and zeros[0] != zeros[1]:
        return "utf-16-be" if zeros[0] else "utf-16-le"
    return "utf-8"


class _Recoded(io.RawIOBase):
    """Reads another encoding's bytes as UTF-8."""

    def __init__(self, handle: IO[bytes], encoding: str) -> None:
        self._handle, self._encoding = handle, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._waiting:
            piece = self._handle.read(_CHUNK)
            try:
                text = self._decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                if not piece:
                    raise CutOff from None
                raise Broken(f"it is not valid {self._encoding.upper()}: {error.reason}") from None
            self._waiting = text.encode("utf-8", "surrogatepass")
            if not piece:
                break
        size = min(len(buffer), len(self._waiting))
        buffer[:size], self._waiting = self._waiting[:size], self._waiting[size:]
        return size
