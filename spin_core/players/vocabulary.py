"""Whether every token that a run can use has a row in the model's embedding; runs in the import's child.

Tokens that were added to a tokenizer while the embedding stayed as it was are the commonest fault of home-made SFT models: the
first prompt that uses one ends in an IndexError, or on a GPU in an assert of the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spin_core.players.limits import beyond, first_beyond
from spin_core.runtime.errors import BadInput

_PROBES = (
    [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}],
    [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}],
)


def embedding_rows(model: Any) -> int:
    """The ids that the model can both read and predict: the smaller of the rows of its embedding and of its head."""
    head = model.get_output_embeddings()
    ends = [model.get_input_embeddings(), *([head] if head is not None else [])]
    return min(int(end.weight.shape[0]) for end in ends)


def require_vocabulary(tokenizer: Any, count: int, where: str) -> None:
    """BadInput for a token that prompts or answers can hold and the embedding of `count` rows has not.

    Special tokens that nothing writes may lie beyond it (a padding token that was only ever a name). A padding id beyond it
    is replaced by EOS: what is padded is masked, so any id will do that the model has.
    """
    for name in ("eos_token", "bos_token"):
        number = getattr(tokenizer, f"{name}_id")
        if number is not None and not 0 <= number < count:
            raise beyond(getattr(tokenizer, name), number, count, f"{name} of the tokenizer of {where}")
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        if number >= count and (number not in special or (template and token in template and number != tokenizer.pad_token_id)):
            raise beyond(token, number, count, f"the {'chat template' if number in special else 'tokenizer'} of {where}")
    for ids in _rendered(tokenizer):
        if (number := first_beyond(ids, count)) is not None:
            raise beyond(tokenizer.convert_ids_to_tokens(number), number, count, f"the chat template of {where}")
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= count:
        if tokenizer.eos_token is None:
            raise BadInput(f"the tokenizer of {where} pads with an id that the model has not, and has no EOS", remedy="set eos_token")
        print(f"padding: {tokenizer.pad_token} has no row in the embedding; {tokenizer.eos_token} pads", flush=True)
        tokenizer.pad_token = tokenizer.eos_token


def _rendered(tokenizer: Any) -> Iterator[list[int]]:
    """The ids of short conversations, as far as the template takes them: it may build its tokens from parts of text."""
    if not tokenizer.chat_template:
        return
    for talk in _PROBES:
        for prompt in (True, False):
            try:
                yield tokenizer.apply_chat_template(talk, add_generation_prompt=prompt, tokenize=True, return_dict=False)
            except Exception:  # a template refuses by raising whatever it likes; rows are what must render, and `encode` sees to them
                continue
