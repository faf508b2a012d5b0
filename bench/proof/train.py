"""Training in this process, of the library's parts: plan, schedule, packing, log-probs, objectives, β from the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bench.proof.families import END, Row
from bench.proof.player import Weights, logps, weights_of
from bench.proof.settings import TOKENS
from spin_core.contracts.tables import same_lists
from spin_core.encoding.ends import Ends, without_end
from spin_core.lm.attention import set_attention
from spin_core.lm.logprobs import answer_logps
from spin_core.lm.packing import Packed, pack
from spin_core.recipe import TrainingSettings
from spin_core.scoring.beta import Surprise
from spin_core.training.objectives import objective
from spin_core.training.plan import Plan, Sizes, plan
from spin_core.training.schedule import Schedule
from spin_core.training.trainer import as_pairs, collate_pairs

ENDS = Ends([END], ["<end>"], END)
Pair = dict[str, Any]  # row, prompt_ids, real_ids, generated_ids, and its references once scored


def make_pairs(rows: list[Row], numbers: list[int], answers: list[list[int]], iteration: int = 0) -> list[Pair]:
    """The human answer of each numbered row beside a sampled one."""
    return [
        {"row": number, "iteration": iteration, "prompt_ids": rows[number].prompt, "real_ids": rows[number].real, "generated_ids": answer}
        for number, answer in zip(numbers, answers, strict=True)
    ]


def name_newer(pairs: list[Pair]) -> None:
    """Writes the place of its row's newer answer into each pair, −1 for none: `training.history` for one sample a row."""
    newest = max((pair["iteration"] for pair in pairs), default=0)
    fresh = {pair["row"]: place for place, pair in enumerate(pairs) if pair["iteration"] == newest}
    for pair in pairs:
        place = fresh.get(pair["row"], -1) if pair["iteration"] < newest else -1
        answers = [pair["real_ids"], pair["generated_ids"], pairs[place]["generated_ids"]]
        pair["newer"] = place if place >= 0 and not any(one == other for one, other in combinations(answers, 2)) else -1


def trainable(pairs: list[Pair], settings: TrainingSettings) -> list[Pair]:
    """Without pairs whose answers are the same but for what ends them, unless the loss has a gradient on them: the rule of `pairs`."""
    if settings.keeps_identical or not pairs:
        return pairs
    sides = (without_end(pa.array([pair[side] for pair in pairs], pa.list_(pa.int32())), ENDS) for side in ("real_ids", "generated_ids"))
    same = same_lists(*sides).to_pylist()
    return [pair for pair, equal in zip(pairs, same, strict=True) if not equal]


@dataclass(frozen=True)
class Played:
    """What an iteration of self-play trained on."""

    beta: float
    pairs: int
    loss: list[float]  # of each step
    real: float  # nats that human answers gained in the last tenth of the steps, in training
    generated: float


def spin(model: Any, pairs: list[Pair], settings: TrainingSettings) -> Played:
    """θ_t, whose weights `model` has, becomes θ_{t+1}; the pairs carry their reference log-probs."""
    surprise = Surprise.of([pair["reference_real"] for pair in pairs], [len(pair["real_ids"]) for pair in pairs])
    keys = settings.model_dump() | {"beta": surprise.resolve(settings.beta)}
    goal = objective(keys)
    steps = _plan(pairs, settings)
    losses: list[float] = []
    gains: list[tuple[float, float]] = []

    def loss_sum(batch: list[int]) -> Tensor:
        given = collate_pairs([pairs[i] for i in batch], pairs)
        packed = Packed(**{name: given[name] for name in Packed.__dataclass_fields__})
        loss_B, metrics = goal.loss(as_pairs(answer_logps(model, packed), given))
        gains.append((float(metrics["rewards/real"].mean()) / goal.beta, float(metrics["rewards/generated"].mean()) / goal.beta))
        return loss_B.sum()

    for step in _steps(model, steps, settings, loss_sum):
        losses.append(step)
    last = gains[-max(1, len(gains) // 10) :]
    return Played(goal.beta, len(pairs), losses, float(np.mean([r for r, _ in last])), float(np.mean([g for _, g in last])))


def score(model: Any, pairs: list[Pair]) -> None:
    """Writes what `model` thinks of both answers into the pairs: the reference."""
    both = logps(model, [p["prompt_ids"] for p in pairs] * 2, [p[side] for side in ("real_ids", "generated_ids") for p in pairs])
    for pair, real, generated in zip(pairs, both[: len(pairs)], both[len(pairs) :], strict=True):
        pair["reference_real"], pair["reference_generated"] = real, generated


def fine_tune(
    model: Any, rows: list[Row], settings: TrainingSettings, nll: Callable[[], float] | None = None, adam: bool = False, patience: int = 99
) -> tuple[Weights, list[float]]:
    """SFT on the human answers. With `nll` the best epoch by it wins, the beginning included; else the last one does.
    It ends after `patience` epochs without a gain.

    Returns the weights, which `model` holds too, and what `nll` was at the beginning and after each epoch.
    """
    pairs = [{"row": i, "prompt_ids": row.prompt, "real_ids": row.real, "generated_ids": []} for i, row in enumerate(rows)]
    steps = _plan(pairs, settings)

    def loss_sum(batch: list[int]) -> Tensor:
        logp_B = answer_logps(model, pack([rows[i].prompt for i in batch], [rows[i].real for i in batch]))
        return -logp_B.sum() / float(np.mean([len(row.real) for row in rows]))

    curve = [nll()] if nll else []
    best, epoch = weights_of(model), -(-len(rows) // settings.pairs_per_step)
    for number, _ in enumerate(_steps(model, steps, settings, loss_sum, adam), 1):
        if nll and (number % epoch == 0 or number == len(steps.steps)):
            curve.append(nll())
            set_attention(model, "sdpa", bf16=False)
            if curve[-1] <= min(curve):
                best = weights_of(model)
            elif len(curve) - 1 - int(np.argmin(curve)) >= patience:
                break
    if nll:
        model.load_state_dict(best)
    return weights_of(model), curve


def _plan(pairs: list[Pair], settings: TrainingSettings) -> Plan:
    row = np.array([pair["row"] for pair in pairs])
    columns = [[len(pair[side]) for pair in pairs] for side in ("prompt_ids", "real_ids", "generated_ids")]
    columns.append([pair.get("newer", -1) for pair in pairs])
    _, row = np.unique(row, return_inverse=True)
    sizes = Sizes(row.astype(np.int64), *(np.array(column, dtype=np.int64) for column in columns))
    keys = {"epochs": settings.epochs, "seed": settings.seed, "group_rows": settings.group_rows, "world": 1}
    return plan(sizes, pairs_per_step=settings.pairs_per_step, tokens=TOKENS, **keys)


def _steps(model: Any, steps: Plan, settings: TrainingSettings, loss_sum: Callable[[list[int]], Tensor], adam: bool = False) -> Any:
    """One optimiser step after the other; yields its mean loss."""
    set_attention(model, "sdpa", bf16=False)
    kind = torch.optim.AdamW if adam else torch.optim.RMSprop
    optimizer = kind(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = Schedule.of(settings.model_dump(), len(steps.steps))
    for number, batches in enumerate(steps.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * schedule.share(number + 1)
        total = 0.0
        for batch in filter(None, batches):
            loss = loss_sum(batch) / steps.pairs(number)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield total
