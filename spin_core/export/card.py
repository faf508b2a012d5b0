"""The model card: what was trained on what and how, what it is worth, and how to load it; with the hub's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from spin_core.campaign.ledger import Turn, model_of
from spin_core.export.origin import Origin
from spin_core.recipe import Recipe
from spin_core.recipe.identity import identity
from spin_core.report.results import LEGEND, rows_for, verdict, warnings_of
from spin_core.runtime.redact import redact
from spin_core.sources.pins import on_hub

_PRIVATE = {"url", "endpoints"}  # where somebody's servers are is nobody else's business
_TAGS = ["spin", "self-play", "spinflow"]
_LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
messages = [{{"role": "user", "content": "…"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{kwargs})
print(tokenizer.decode(model.generate(**inputs, max_new_tokens={tokens})[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def model_card(recipe: Recipe, turns: Sequence[Turn], number: int, origin: Origin, told: Mapping[str, Any]) -> str:
    """The README.md of θ_`number`; `told` is what the export's child said of it, its dtype and what ends a turn."""
    shown = turns[: max(number, 1)]
    kwargs = recipe.model.chat_template_kwargs
    ends = ", ".join(f"`{text}`" for text in told["ends"])
    data = ModelCardData(
        base_model=recipe.model.name if on_hub(recipe.model.name) else None,
        datasets=[recipe.data.name] if on_hub(recipe.data.name) else None,
        license=origin.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=_TAGS,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {recipe.name} · θ_{number}",
        _what(recipe, number, told),
        "## Results",
        verdict(turns, recipe.stop)[0] + ".",
        _table(rows_for(shown, recipe.stop)),
        f"<sub>{LEGEND}</sub>",
        "![Held-out results](results.png)",
        "\n".join(f"- {line}" for line in (*verdict(shown, recipe.stop)[1:], *warnings_of(shown))),
        "## How to load it",
        _LOAD.format(folder=".", tokens=recipe.generation.max_new_tokens, kwargs=f", **{kwargs!r}" if kwargs else ""),
        f"vLLM: `vllm serve .`. A turn ends in {ends}. The figures above were measured on answers of at most "
        f"{recipe.generation.max_new_tokens} tokens, sampled at temperature {recipe.generation.temperature:g}, "
        f"top_p {recipe.generation.top_p:g}.",
        "## Data and settings",
        f"What differs from the defaults of spinflow {version('spinflow')}; held-out rows were never trained on.",
        f"```yaml\n{redact(yaml.safe_dump(_shared(identity(recipe)), sort_keys=False, allow_unicode=True))}```",
        "## Lineage",
        _table([*_lineage(recipe, turns, number, origin)]),
    ]
    return "\n\n".join(parts) + "\n"


def _what(recipe: Recipe, number: int, told: Mapping[str, Any]) -> str:
    size = f"{told['architecture']}, {told['parameters'] / 1e6:,.1f}M parameters, {told['dtype']}"
    origin = _name(recipe.model.name)
    if not number:
        how = "after a warm start by SFT" if recipe.sft else "as it was given"
        return f"{origin} {how}: the model that self-play began with ({size})."
    warm = ", after a warm start by SFT," if recipe.sft else ""
    return (
        f"{origin}{warm} after {number} iteration{'s' if number > 1 else ''} of self-play fine-tuning "
        f"([SPIN](https://arxiv.org/abs/2401.01335)) on {_name(recipe.data.name)} ({size})."
    )


def _lineage(recipe: Recipe, turns: Sequence[Turn], number: int, origin: Origin) -> Iterator[dict[str, str]]:
    """A row a model from the one that was given to θ_`number`, with what it was made from."""
    pinned = {name: f" at commit {commit[:12]}" for name, commit in origin.pins.items() if commit}
    given = f"{_name(recipe.model.name)}{pinned.get('model', '')}"
    rows = f"{_name(recipe.data.name)}{pinned.get('data', '')}"
    if "base" in turns[0].made:
        yield {"model": "given", "artifact": f"`{turns[0].ref('base').digest}`", "made from": given}
        yield {"model": "θ_0", "artifact": f"`{model_of(turns, 0).digest}`", "made from": f"SFT of the given model on {rows}"}
    else:
        yield {"model": "θ_0", "artifact": f"`{model_of(turns, 0).digest}`", "made from": given}
    line: list[int] = []
    while number:
        line.append(number)
        number = turns[number - 1].opponent
    for player in reversed(line):
        turn = turns[player - 1]
        pairs = turn.ref("pairs").facts.get("pairs", 0)
        made = f"θ_{turn.opponent} on {pairs:,} pairs: human answers of {rows} against its own"
        yield {"model": f"θ_{player}", "artifact": f"`{turn.ref('model').digest}`", "made from": made}


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _name(name: str) -> str:
    """A hub id in full; of a path its last part: a card is for others."""
    return name if on_hub(name) or name.startswith("pypi:") else Path(name).name


def _shared(value: Any) -> Any:
    """Settings without the places that are of this machine."""
    if isinstance(value, dict):
        return {key: _shared(found) for key, found in value.items() if key not in _PRIVATE}
    if isinstance(value, list):
        return [_shared(found) for found in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value
