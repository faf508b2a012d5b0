"""The child of `spinflow check` that loads the model as scoring and training will, and scores a few human answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from spin_core.contracts.tables import iter_tables, split_files
from spin_core.players.limits import beyond
from spin_core.players.vocabulary import embedding_rows
from spin_core.recipe.losses import trl_lacks
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput

_ROWS, _TOKENS = 4, 256  # of the first human answers, cut: enough to see whether a model knows any language
_SMALL = 1_000_000_000  # parameters up to which a forward pass takes seconds on a CPU


def _work(job: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from spin_core.lm.adapter import attach, quantized

    training = job["training"]
    lora = training["lora"]
    quantized(lora and lora["quantize"], bf16=False)  # raises where it cannot be done
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    found: dict[str, Any] = {"parameters": model.num_parameters(), "architecture": model.config.model_type, "problems": []}
    encoded = Path(job["encoded"]) if job["encoded"] else None
    step = _attempt(found, lambda: _step(model.config, _longest(encoded, job["answer"], job["prompt"]), training))
    found["step"] = step.why if step else "none"
    if encoded:
        _attempt(found, lambda: _within_embedding(model, encoded, job["model"]))
        if not found["problems"]:
            found |= _scored(model, encoded, job, found)
            _attempt(found, lambda: _proven(model, step, encoded, found))
    if lora:
        _attempt(found, lambda: attach(model, lora, 0, False))
    Path(job["out"]).write_text(json.dumps(found))


def _attempt(found: dict[str, Any], work: Any) -> Any:
    try:
        return work()
    except BadInput as error:
        what, _, remedy = str(error).partition("; ")
        found["problems"].append({"what": what, "remedy": remedy})
        return None


def _within_embedding(model: Any, encoded: Path, folder: str) -> None:
    """BadInput for a row with an id that the model has no row for: the import sees to all it can, a template may surprise it."""
    import pyarrow.compute as pc
    from transformers import AutoTokenizer

    count = embedding_rows(model)
    for split, file in split_files(encoded).items():
        for table in iter_tables(file, ["prompt_ids", "real_ids"]):
            for name in ("prompt_ids", "real_ids"):
                highest = pc.max(pc.list_flatten(table[name])).as_py()
                if highest is not None and highest >= count:
                    raise beyond(AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(highest), highest, count, f"a {split} row")


def _step(config: Any, longest: int, training: dict[str, Any]) -> Any:
    """Which training step the model gets, and why; BadInput where none takes the recipe's loss."""
    from spin_core.lm.layout import step_of

    step = step_of(config, longest, training["backend"])
    if not step.packed and training["backend"] != "trl" and (lacking := trl_lacks(training)):
        raise BadInput(f"{step.why}, and TRL's step has no {lacking}", remedy="train with loss: sigmoid")
    return step


def _proven(model: Any, step: Any, encoded: Path, found: dict[str, Any]) -> None:
    """BadInput where the first rows' log-probs are not those of the model's own forward pass, as scoring would find after sampling."""
    from spin_core.lm.layout import choose_layout

    rows = next(iter_tables(encoded / "train.parquet", rows=_ROWS)).to_pylist()
    if found["parameters"] <= _SMALL:
        choose_layout(model, step, [row | {"generated_ids": row["real_ids"][::-1]} for row in rows])


def _longest(encoded: Path | None, answer: int, prompt: int) -> int:
    """Tokens of the longest prompt + answer, where sampled answers may take all of their limit; the limits' sum where no row is known."""
    import pyarrow.compute as pc

    if encoded is None:
        return prompt + answer
    tables = (table for file in split_files(encoded).values() for table in iter_tables(file, ["prompt_ids"]))
    return max((pc.max(pc.list_value_length(table["prompt_ids"])).as_py() or 0 for table in tables), default=prompt) + answer


def _scored(model: Any, encoded: Path, job: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The first row as text, and the mean negative log-likelihood a token of the first human answers: a plain forward pass."""
    import torch
    from transformers import AutoTokenizer

    rows = next(iter_tables(encoded / "train.parquet", rows=_ROWS)).to_pylist()
    tokenizer: Any = AutoTokenizer.from_pretrained(job["model"])
    told = {"prompt": tokenizer.decode(rows[0]["prompt_ids"]), "answer": tokenizer.decode(rows[0]["real_ids"])}
    nats, tokens = 0.0, 0
    if found["parameters"] <= _SMALL:
        for row in rows:
            prompt, answer = row["prompt_ids"], row["real_ids"][:_TOKENS]
            with torch.no_grad():
                logits_TV = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].float()
            nats -= float(logits_TV.log_softmax(-1)[torch.arange(len(answer)), answer].sum())
            tokens += len(answer)
        if not math.isfinite(nats):
            what = "the model gives no finite log-prob to the first human answers: its weights hold NaN or infinity"
            found["problems"].append({"what": what, "remedy": "download it again, or take another checkpoint"})
    return told | {"nats": nats / tokens if tokens else math.nan, "tokens": tokens}


if __name__ == "__main__":
    process.job_main(_work)
