"""A proposed recipe as text: a comment to every number that was decided, and what could not be decided at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from spin_core.generation.vllm_server import installed
from spin_core.inspect.proposal import Numbers, Seen
from spin_core.recipe import DataSettings

# for a model that has no template of its own: plain text that any tokenizer has, and its own end of text after an answer
TEMPLATE = (
    "{% for m in messages %}{{ '### ' + m['role'] + '\\n' + m['content'] + (eos_token if m['role'] == 'assistant' else '') + '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)
_FEW = 40  # rows with which nothing can be told


@dataclass(frozen=True)
class Looked:
    """What was found of both."""

    seen: Seen
    data: DataSettings
    template: bool  # whether the model has a chat template of its own
    shape: str
    read: dict[str, Any]  # facts of the prompts
    rendered: dict[str, Any]  # what the child says
    more_turns: float  # share of the rows with more than one question
    checks: bool
    devices: str


def recipe_text(name: str, model: str, data: str, looked: Looked, numbers: Numbers) -> str:
    """The recipe with a comment to every number that was decided here."""
    seen, warm = looked.seen, not looked.template
    lines = [
        f"# Proposed by `spinflow init`: {seen.parameters / 1e6:,.1f}M parameters, {seen.rows:,} usable rows, {looked.devices}.",
        "# `spinflow keys` lists every key; those that are not here stand at their defaults.",
        f"name: {name}",
        "model:",
        f"  name: {_quoted(model)}",
        *_model_lines(looked),
        "data:",
        f"  name: {_quoted(data)}",
        *_data_lines(looked, numbers),
    ]
    if warm:
        lines += ["sft:                          # a base model: self-play needs one that answers already", "  epochs: 3"]
        lines += [f"  rows_per_step: {numbers.pairs_per_step}", f"  tokens_per_micro_batch: {numbers.micro_batch}"]
    lines += [
        "generation:",
        *([] if installed() else ["  engine: transformers        # vLLM is not installed, and is many times as fast: pip install vllm"]),
        _line(
            "max_new_tokens",
            numbers.max_new_tokens,
            f"human answers: half up to {seen.answer['50']} tokens, 95 % {seen.answer['95']}, "
            f"longest {seen.answer['100']}; longer ones are cut",
        ),
        _line("shard_rows", numbers.shard_rows, "what a crash costs at most"),
        "training:",
        _line(
            "learning_rate",
            numbers.learning_rate,
            "of an adapter" if numbers.lora else f"the paper's 5e-7 is for 7B; this one has {_size(seen)}",
        ),
        _line("pairs_per_step", numbers.pairs_per_step, "the paper's 64, or a tenth of the rows"),
        _line("tokens_per_micro_batch", numbers.micro_batch, "by memory; changes speed, not results"),
        *([_line("gradient_checkpointing", "true", "a long pair's activations do not fit otherwise")] if numbers.checkpointing else []),
        *([_line("lora", "{}", "all weights with their optimiser do not fit the memory")] if numbers.lora else []),
        "  # beta: auto, the default, takes it from how likely the human answers are; the paper's is 0.1",
        "iterations:                   # each takes about as long as the first; `spinflow plan` says how long",
        "  - {}",
        "  - {}",
        *(f"# {line}" for line in _undecided(looked, numbers)),
    ]
    return "\n".join(lines) + "\n"


def _model_lines(looked: Looked) -> Iterator[str]:
    if not looked.template:
        yield f"  chat_template: {json.dumps(TEMPLATE)}  # it has none; this one is plain text and its own end of text"
    if kwargs := looked.rendered["kwargs"]:
        yield f"  chat_template_kwargs: {json.dumps(kwargs)}   # a template that can think, and human answers that do not"


def _data_lines(looked: Looked, numbers: Numbers) -> Iterator[str]:
    prompt, rejected, refused = looked.seen.prompt, looked.read["rejected"], looked.rendered["refused"]
    if looked.shape:
        yield f"  # format: {looked.shape}, recognised by the columns"
    if looked.data.on_truncated == "keep":
        yield _line("on_truncated", "keep", "the file is cut off at its end; its whole rows are used")
    too_long = numbers.max_prompt_tokens < prompt["100"]
    if rejected or refused or too_long:
        why = [f"{count:,} {reason}" for reason, count in looked.read["reasons"].items()]
        if refused:
            why.append(f"{refused:,} of {looked.rendered['rows']:,} looked at cannot be rendered")
        if too_long:
            why.append("prompts over the limit")
        yield _line("on_bad_row", "skip", f"left out: {'; '.join(why)}"[:200])
    yield _line("test_size", numbers.test_size, "reported, never trained on")
    yield _line("validation_size", numbers.validation_size, "what is gone on with is decided on these")
    yield _line(
        "max_prompt_tokens",
        numbers.max_prompt_tokens,
        f"prompts: half up to {prompt['50']} tokens, 99 % {prompt['99']}, longest {prompt['100']}",
    )


def _undecided(looked: Looked, numbers: Numbers) -> Iterator[str]:
    yield "What could not be decided here:"
    if looked.more_turns:
        yield f"- data.turns: {looked.more_turns:.0%} of the rows have several questions; the last answer is learned (`first`, `each`)."
    if not looked.checks:
        yield "- what is better: rows carry no check, so models are compared by the likelihood of the human answers;"
        yield "  checks (docs/data.md) or a function of yours (evaluation.custom: [mine.py:score]) say more."
    if looked.rendered["thinking"] >= 0.5 and looked.template:
        yield "- the human answers think: see that the template renders their thoughts (`spinflow check` shows a row)."
    if looked.seen.rows < _FEW:
        yield f"- whether anything can be told: {looked.seen.rows} rows are few; intervals will be wide."
    if numbers.max_new_tokens < looked.seen.answer["100"]:
        yield "- whether long answers matter: those over generation.max_new_tokens are cut on both sides of a pair."
    if looked.template:
        yield "- whether the model knows this kind of answer already: if not, `sft: {}` makes θ_0 of it first."


def _line(key: str, value: object, why: str) -> str:
    return f"  {f'{key}: {value}':<30}# {why}"


def _size(seen: Seen) -> str:
    return f"{seen.parameters / 1e9:.1f}B" if seen.parameters >= 1e9 else f"{seen.parameters / 1e6:.1f}M"


def _quoted(text: str) -> str:
    plain = yaml.safe_dump(text, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
    return str(plain)
