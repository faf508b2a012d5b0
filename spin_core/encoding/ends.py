"""What ends a turn: found once, written beside the encoded rows, read by every stage that must know it.

An end is an id that the tokenizer calls its EOS, that the model's folder calls one, or that the template puts after an
answer. Phi-3 ends turns in `<|end|>` and texts in `<|endoftext|>`, Llama-3 has three, Gemma's `<end_of_turn>` is no EOS at
all: an engine that knows one of them runs on into invented turns, or gives equal texts other ids than the human side.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spin_core.runtime.errors import BadInput, Corrupt

_FILE = "ends.json"


@dataclass(frozen=True)
class Ends:
    """The ids that end a turn."""

    ids: list[int]  # ascending; an engine stops on each of them and on nothing else
    texts: list[str]  # the tokens, in the order of `ids`
    template: int  # the one of `ids` that the template puts after an answer

    def cut(self, ids: list[int]) -> list[int]:
        """An answer's ids up to and with its first end of turn; all of them where it has none."""
        return next((ids[: place + 1] for place, token in enumerate(ids) if token in self.ids), ids)

    def write(self, folder: Path) -> None:
        """Writes them into an artifact that is being made."""
        (folder / _FILE).write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")


def read_ends(encoded: Path) -> Ends:
    """The ends of an `encoded` artifact. Raises Corrupt where it has none."""
    try:
        return Ends(**json.loads((encoded / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise Corrupt(f"{encoded / _FILE} cannot be read", remedy=f"remove {encoded} and run again") from None


def folder_eos(model_dir: Path) -> list[int]:
    """The EOS ids [E] that a model's folder names: in generation_config.json, or else in config.json."""
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((model_dir / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        if found is not None:
            return sorted({int(token) for token in (found if isinstance(found, list) else [found])})
    return []


def folder_vocabulary(model_dir: Path) -> int | None:
    """How many tokens the model of a folder has, from its config.json; None where it does not say."""
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        return int(config.get("vocab_size") or config["text_config"]["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_ends(tokenizer: Any, eos: Iterable[int], after_answer: Sequence[str]) -> Ends:
    """The union of the tokenizer's EOS, the folder's `eos` and the first control token of the texts `after_answer`.

    `after_answer` is what the template puts behind an answer, the likeliest text first. An id of `eos` that is a piece of
    ordinary text (a configuration's default that fits another tokenizer) is left out: it would cut answers in mid-sentence.
    Raises BadInput where the template ends no answer.
    """
    added: Mapping[int, Any] = tokenizer.added_tokens_decoder
    known = {token for token in eos if token in added}
    if tokenizer.eos_token_id is not None:
        known.add(int(tokenizer.eos_token_id))
    template = None
    for text in after_answer:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        template = next((token for token in ids if token in known or (token in added and added[token].content.strip())), None)
        if template is not None:
            break
    if template is None:
        raise BadInput(
            "the chat template puts no end-of-turn token after an answer",
            remedy="mend it (after an answer comes eos_token), or give another as model.chat_template",
        )
    found = sorted(known | {template})
    return Ends(found, [str(tokenizer.convert_ids_to_tokens(token)) for token in found], template)


def without_end(ids: pa.ListArray, ends: Ends) -> pa.ListArray:
    """Lists of ids [N] without their last id where that is an end of turn: what is left is the answer itself."""
    offsets = ids.offsets.to_numpy()
    offsets, values = offsets - offsets[0], ids.flatten().to_numpy()
    ended = ended_N(ids, ends)
    kept = np.ones(len(values), dtype=bool)
    kept[offsets[1:][ended] - 1] = False
    lengths = np.diff(offsets) - ended
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), pa.array(values[kept], ids.type.value_type), type=ids.type
    )


def ended_N(ids: pa.ListArray, ends: Ends) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which lists of ids [N] end in an end of turn; an empty one does not."""
    offsets = ids.offsets.to_numpy()
    offsets, values = offsets - offsets[0], ids.flatten().to_numpy()
    filled = np.diff(offsets) > 0
    found = np.zeros(len(ids), dtype=bool)
    found[filled] = np.isin(values[offsets[1:][filled] - 1], ends.ids)
    return found
