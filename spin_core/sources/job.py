"""The child that reads a source into `prompts`; its memory does not grow with the source."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from spin_core.contracts.checks import BadCheck, validate
from spin_core.contracts.rows import PROMPTS, REJECTED, Message
from spin_core.contracts.tables import TableWriter, with_last_content
from spin_core.recipe import DataSettings
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.runtime.progress import Progress, print_event
from spin_core.sources.columns import absent
from spin_core.sources.locate import Source
from spin_core.sources.order import Sorter, Split, draw, without_duplicates
from spin_core.sources.readers import Reader
from spin_core.sources.shapes import to_talk
from spin_core.sources.talk import BadRow, choose_turns, root

_DUPLICATE = "duplicate"
_EVENT_EVERY_S = 0.5
_KINDS_SHOWN = 6  # kinds of reasons in the message; rejected.parquet has every row's own


class _Rejected:
    """The rows that were left out, with their numbers and reasons."""

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        self._numbers: list[int] = []
        self._reasons: list[str] = []
        self._known: dict[str, str] = {}  # one string a reason: a million rows may have the same
        self.kinds: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # of each kind, the first row and its whole reason

    def add(self, number: int, reason: str) -> None:
        if self._settings.on_bad_row == "error":
            raise BadInput(f"{self._settings.name} row {number}: {reason}", remedy="mend it, or set data.on_bad_row=skip")
        self._numbers.append(number)
        self._reasons.append(self._known.setdefault(reason, reason))
        kind = re.sub(r"\b\d+\b", "N", re.sub(r" *[:(].*", "", reason))
        if not self.kinds[kind]:
            self.first[kind] = f"row {number}: {reason}"
        self.kinds[kind] += 1

    def worst(self) -> str:
        """The most frequent kind of reason with its first row; empty if no row was left out."""
        if not self.kinds:
            return ""
        kind, count = self.kinds.most_common(1)[0]
        return f"{self.kinds.total():,} were left out, {count:,} of them like {self.first[kind]}"

    def write(self, path: Path) -> int:
        table = pa.table({"row_number": self._numbers, "reason": self._reasons}, schema=REJECTED).sort_by("row_number")
        with TableWriter(path, REJECTED) as sink:
            sink.write(table)
        return len(self._numbers)


def _work(job: dict[str, Any]) -> None:
    settings, out = DataSettings.model_validate(job["settings"]), Path(job["out"])
    source = Source(settings.name, tuple(Path(file) for file in job["files"]), job["commit"], settings.config)
    reader, rejected = Reader(source, settings), _Rejected(settings)
    split = Split(settings.test_size, settings.validation_size, settings.subset)
    with TemporaryDirectory(dir=out) as folder:
        sorter = Sorter(Path(folder))
        _collect(reader, settings, sorter, rejected)
        usable = _write_sides(sorter, split, rejected, settings, out)
    _demand_train_rows(split, usable, settings, rejected)
    left_out = rejected.write(out / "rejected.parquet")
    facts = {
        "rows": reader.count,
        "train": split.train,
        "test": split.test,
        "validation": split.validation,
        "rejected": left_out,
        "duplicates": rejected.kinds[_DUPLICATE],
        "reasons": dict(rejected.kinds.most_common(_KINDS_SHOWN)),
        "truncated": bool(reader.truncated),
    }
    (out / "facts.json").write_text(json.dumps(facts | {"message": _message(facts, reader)}))


def _message(facts: dict[str, Any], reader: Reader) -> str:
    text = f"{facts['rows']:,} rows read: {facts['train']:,} to train on, {facts['test']:,} held out"
    if facts["validation"]:
        text += f", {facts['validation']:,} to choose on"
    if facts["rejected"]:
        text += f", {facts['rejected']:,} left out (" + ", ".join(f"{n:,} {reason}" for reason, n in facts["reasons"].items()) + ")"
    return text + "".join(f"; {name} is cut off at its end, its whole rows were kept" for name in reader.truncated)


def _collect(reader: Reader, settings: DataSettings, sorter: Sorter, rejected: _Rejected) -> None:
    """Reads every row into the sorter or the rejected ones."""
    show, ignored = _shower(reader), frozenset(settings.ignore_columns)
    for number, raw in enumerate(reader, 1):
        for messages, check in _talks(raw, settings, ignored):
            if isinstance(messages, BadRow):
                rejected.add(number, str(messages))
                continue
            # the turns of one conversation contain each other, so `each` keeps them on one side
            context = root(messages) if settings.turns == "each" else messages[:-1]
            sorter.add(number, messages, draw(context, settings.seed), check)
        show()


def _talks(raw: Any, settings: DataSettings, ignored: frozenset[str]) -> Iterator[tuple[list[Message] | BadRow, str | None]]:
    """The scored conversations of a row; a row's check is one of its last answer, so earlier ones have none."""
    try:
        talk = to_talk(raw, settings.format, ignored)
        check = None if "check" in ignored else _check(raw)
        for messages in choose_turns(talk, settings.turns):
            last = not isinstance(messages, BadRow) and messages[-1] is talk.messages[talk.answers[-1]]
            yield messages, check if last else None
    except BadRow as error:
        yield error, None


def _check(raw: Any) -> str | None:
    """The row's check as JSON; it is an object, or the text of one."""
    check = raw.get("check") if isinstance(raw, Mapping) else None
    if absent(check):
        return None
    try:
        return json.dumps(validate(json.loads(check) if isinstance(check, str) else check))
    except BadCheck as error:
        raise BadRow(f"its {error}") from None
    except ValueError:
        raise BadRow("its check is text that is not JSON") from None


def _shower(reader: Reader) -> Callable[[], None]:
    last = time.monotonic()

    def show() -> None:
        nonlocal last
        if time.monotonic() - last > _EVENT_EVERY_S:
            last = time.monotonic()
            megabytes = round(reader.done / 1e6), max(1, round(reader.total / 1e6))
            print_event(Progress("", *(megabytes if reader.total else (0, 1)), "MB", f"{reader.count:,} rows"))

    return show


def _write_sides(sorter: Sorter, split: Split, rejected: _Rejected, settings: DataSettings, out: Path) -> int:
    """Writes a file a split; returns how many rows could be used."""
    usable = 0
    with ExitStack() as files:
        names = ("test", "validation", "train") if settings.validation_size else ("test", "train")
        sinks = {name: files.enter_context(TableWriter(out / f"{name}.parquet", PROMPTS)) for name in names}
        for table in sorter:
            table, repeated = without_duplicates(table)
            for number, first in repeated:
                rejected.add(number, f"{_DUPLICATE} (of row {first})")
            usable += table.num_rows
            for name, side in zip(("test", "validation", "train"), split.cut(table), strict=True):
                if side.num_rows:
                    sinks[name].write(_prompts(side, settings.name))
    return usable


def _prompts(table: pa.Table, source: str) -> pa.Table:
    real = table["real"].combine_chunks()
    columns = {
        "row_id": table["row_id"],
        "real": real,
        "generated": with_last_content(real, pa.array([""] * len(real))),
        "source": pa.array([source] * len(real)),
        "row_number": table["row_number"],
        "check": table["check"],
    }
    return pa.table(columns, schema=PROMPTS)


def _demand_train_rows(split: Split, usable: int, settings: DataSettings, rejected: _Rejected) -> None:
    if split.train:
        return
    name, usable = settings.name, min(usable, settings.subset or usable)
    left_out, taken = rejected.worst(), settings.test_size + settings.validation_size
    sizes = f"data.test_size={settings.test_size}"
    sizes += f" and data.validation_size={settings.validation_size}" if settings.validation_size else ""
    if usable <= taken and left_out:
        what = f"{name} has {usable:,} usable rows for {sizes}; {left_out}"
        raise BadInput(what, remedy="mend them, or let the recipe say how to read them")
    if not usable:
        raise BadInput(f"{name} holds no rows", remedy="check data.name and data.split")
    if usable <= taken:
        verb, remedy = ("leave", "lower them") if settings.validation_size else ("leaves", "lower it")
        raise BadInput(f"{name} has {usable:,} usable rows, {sizes} {verb} none to train on", remedy=remedy)
    raise BadInput(f"{name}: all its rows share the held-out contexts, none is left to train on", remedy="add other prompts")


if __name__ == "__main__":
    process.job_main(_work)
