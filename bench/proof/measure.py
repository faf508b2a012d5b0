"""What is measured of a player on rows that it was not trained on: a value a row, so that rows can be drawn again for intervals."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from bench.proof.families import FAMILIES, Row
from bench.proof.player import logps, sample
from bench.proof.settings import SAMPLES

KL_ROWS = 50  # of each family of phrasings: all their right answers have to be scored
Values = dict[str, list[float | None]]


def nll(model: Any, rows: list[Row]) -> float:
    """Nats a token of the human answers: what everything is chosen by, on the validation rows."""
    return -sum(logps(model, [row.prompt for row in rows], [row.real for row in rows])) / sum(len(row.real) for row in rows)


def accuracy(model: Any, rows: list[Row], seed: int, temperature: float, samples: int = 1) -> list[float]:
    """A row's share of right answers."""
    answers = sample(model, [row.prompt for row in rows for _ in range(samples)], seed, temperature)
    return _right(rows, answers, samples)


def _right(rows: list[Row], answers: list[list[int]], samples: int) -> list[float]:
    found = []
    for number, row in enumerate(rows):
        right = [answer for _, answer in row.support]
        found.append(sum(answer in right for answer in answers[number * samples : (number + 1) * samples]) / samples)
    return found


def measured(model: Any, rows: list[Row], seed: int) -> Values:
    """Of each row: `t1` and `greedy` (share right), `nll` and `entropy` (nats an answer: human and its own), `kl` (nats, exact; None
    where it was not computed), `tokens` (of the human answer)."""
    prompts = [row.prompt for row in rows]
    repeated = [prompt for prompt in prompts for _ in range(SAMPLES)]
    answers = sample(model, repeated, seed)
    own = logps(model, repeated, answers)
    human = logps(model, prompts, [row.real for row in rows])
    return {
        "t1": [*_right(rows, answers, SAMPLES)],
        "greedy": [*_right(rows, sample(model, prompts, seed, 0.0), 1)],
        "nll": [-logp for logp in human],
        "entropy": [-sum(own[i * SAMPLES : (i + 1) * SAMPLES]) / SAMPLES for i in range(len(rows))],
        "kl": _divergences(model, rows, human),
        "tokens": [float(len(row.real)) for row in rows],
    }


def _divergences(model: Any, rows: list[Row], human: list[float]) -> list[float | None]:
    """KL(p_data ‖ p_θ) of each row's answer. With one right answer it is that answer's NLL."""
    found: list[float | None] = [-logp for logp in human]
    left = Counter({family: KL_ROWS for family in FAMILIES})
    chosen = []
    for number, row in enumerate(rows):
        if len(row.support) > 1:
            found[number] = None
            left[row.family] -= 1
            if left[row.family] >= 0:
                chosen.append(number)
    asked = [(number, frequency, answer) for number in chosen for frequency, answer in rows[number].support]
    scores = logps(model, [rows[number].prompt for number, _, _ in asked], [answer for _, _, answer in asked])
    sums: Counter[int] = Counter()
    for (number, frequency, _), logp in zip(asked, scores, strict=True):
        sums[number] += frequency * (math.log(frequency) - logp)  # type: ignore[assignment]
    for number in chosen:
        found[number] = float(sums[number])
    return found
