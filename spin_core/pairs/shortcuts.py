"""How well a pair's sides are told apart without reading them: by first token, last token, length, or not being finished.

Where one of these alone is near 1, the game is won by it, and the model learns it instead of the human answers' content. A
figure is an AUC: the chance that a human answer scores higher than a sampled one, ties counting half; 0.5 is a coin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spin_core.encoding.ends import Ends, ended_N

WARN_FROM = 0.9
_ENOUGH = 20  # pairs; with fewer a figure near 1 says little
_REMEDY = {
    "first_token": "look at model.chat_template_kwargs and at what the template puts before an answer",
    "last_token": "look at generation.max_new_tokens and at what ends a turn",
    "length": "look at generation.max_new_tokens and at the data",
    "unfinished": "raise generation.max_new_tokens",
}

Counts = Counter[int]  # value → answers that have it


def auc(human: Mapping[Any, int], sampled: Mapping[Any, int]) -> float:
    """P(a human answer's value > a sampled one's) + half of P(equal), of values with their counts; 0.5 where a side is empty."""
    total = sum(human.values()) * sum(sampled.values())
    if not total:
        return 0.5
    won, below = 0.0, 0
    for value in sorted({*human, *sampled}):
        won += human.get(value, 0) * (below + sampled.get(value, 0) / 2)
        below += sampled.get(value, 0)
    return won / total


def either_way(value: float) -> float:
    """The AUC of the same figure read in the direction that tells more."""
    return max(value, 1 - value)


def token_auc(folds: tuple[tuple[Counts, Counts], tuple[Counts, Counts]]) -> float:
    """The AUC of tokens scored by how often the *other* half of the pairs has them on the human side; never below 0.5.

    `folds` holds (human, sampled) counts of two halves. Scored by their own counts, tokens that occur once would tell the sides
    of any small data apart; a token that the other half does not have scores 0.5.
    """
    found = []
    for own, other in (folds, folds[::-1]):
        scores = [_scored(side, *other) for side in own]
        if all(scores):
            found.append(auc(*scores))
    return max(0.5, sum(found) / len(found)) if found else 0.5


def _scored(tokens: Counts, human: Counts, sampled: Counts) -> Counter[float]:
    scores: Counter[float] = Counter()
    for token, count in tokens.items():
        scores[(human[token] + 0.5) / (human[token] + sampled[token] + 1)] += count
    return scores


class Shortcuts:
    """Counts the answers of pairs that come in blocks; its memory grows with the vocabulary, not with the pairs."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._pairs = 0
        self._tokens = {name: tuple((Counter[int](), Counter[int]()) for _ in range(2)) for name in ("first_token", "last_token")}
        self._plain = {name: (Counter[int](), Counter[int]()) for name in ("length", "unfinished")}

    def add(self, real: pa.ListArray, generated: pa.ListArray) -> None:
        """The real_ids [N] and generated_ids [N] of the next pairs; none of them may be empty."""
        fold_N = (self._pairs + np.arange(len(real))) % 2
        self._pairs += len(real)
        for side, ids in enumerate((real, generated)):
            offsets = ids.offsets.to_numpy()
            offsets, values = offsets - offsets[0], ids.flatten().to_numpy()
            for name, tokens_N in (("first_token", values[offsets[:-1]]), ("last_token", values[offsets[1:] - 1])):
                for fold in range(2):
                    _count(self._tokens[name][fold][side], tokens_N[fold_N == fold])
            _count(self._plain["length"][side], np.diff(offsets))
            _count(self._plain["unfinished"][side], (~ended_N(ids, self._ends)).astype(int))

    def aucs(self) -> dict[str, float]:
        """The four figures, each from 0.5 to 1, rounded to three digits."""
        found = {name: token_auc((folds[0], folds[1])) for name, folds in self._tokens.items()}
        found |= {name: either_way(auc(*sides)) for name, sides in self._plain.items()}
        return {name: round(value, 3) for name, value in found.items()}

    def warnings(self, spell: Callable[[int], str]) -> list[str]:
        """One line for each figure that wins the game alone, with its cause; `spell` gives a token's text."""
        if self._pairs < _ENOUGH:
            return []
        strong = {name: value for name, value in self.aucs().items() if value >= WARN_FROM}
        return [
            f"{name.replace('_', ' ')} alone tells the sides apart (AUC {value:.2f}): {self._cause(name, spell)}; {_REMEDY[name]}"
            for name, value in strong.items()
        ]

    def _cause(self, name: str, spell: Callable[[int], str]) -> str:
        if name in self._tokens:
            verb = "begin with" if name == "first_token" else "end in"
            folds = self._tokens[name]
            first, second = (self._usual(folds[0][side] + folds[1][side], spell) for side in range(2))
            return f"most sampled answers {verb} {second}, most human ones {verb} {first}"
        human, sampled = self._plain[name]
        if name == "length":
            return f"half of the human answers have up to {_median(human)} tokens, half of the sampled ones up to {_median(sampled)}"
        return f"{sampled[1] / self._pairs:.0%} of the sampled answers are cut at the limit, {human[1] / self._pairs:.0%} of the human ones"

    def _usual(self, tokens: Counts, spell: Callable[[int], str]) -> str:
        token, count = tokens.most_common(1)[0]
        return f"{spell(token)!r} ({count / self._pairs:.0%})"


def speller(model_dir: str | None) -> Callable[[int], str]:
    """Gives a token's text by its id, or its number where the model has no tokenizer.json; reads the file only when asked."""

    @lru_cache(1)
    def tokenizer() -> Any:
        from tokenizers import Tokenizer

        file = Path(model_dir) / "tokenizer.json" if model_dir else None
        return Tokenizer.from_file(str(file)) if file and file.is_file() else None

    def spell(token: int) -> str:
        return str(tokenizer().decode([token], skip_special_tokens=False)) if tokenizer() else f"token {token}"

    return spell


def _count(counts: Counts, values: np.ndarray[Any, Any]) -> None:
    found, times = np.unique(values, return_counts=True)
    counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))


def _median(counts: Counts) -> int:
    left = (sum(counts.values()) + 1) // 2
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    raise AssertionError("no answers")
