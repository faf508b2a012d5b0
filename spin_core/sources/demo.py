"""The demo's data: questions of several families with short answers that a program can check."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from spin_core.runtime.errors import BadInput

MAX_ROWS = 20_000  # well below the number of different questions, so that drawing unique ones ends
_WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "bread",
    "tiger",
    "music",
    "green",
    "table",
    "chair",
    "horse",
    "light",
    "water",
    "plant",
    "mouse",
    "house",
    "train",
    "smile",
    "paper",
    "clock",
    "beach",
    "sugar",
    "lemon",
    "piano",
    "bridge",
    "garden",
    "window",
    "winter",
    "summer",
    "silver",
    "forest",
    "market",
    "doctor",
    "pencil",
    "rocket",
    "basket",
    "candle",
    "planet",
]
_OPPOSITES = (
    "hot cold, big small, up down, day night, fast slow, wet dry, open closed, old new, left right, early late, hard soft, "
    "full empty, happy sad, high low, rich poor, strong weak, light dark, long short, thick thin, clean dirty"
)
_PLURALS = (
    "cat cats, dog dogs, box boxes, child children, mouse mice, foot feet, leaf leaves, city cities, tooth teeth, bus buses, "
    "man men, woman women, baby babies, knife knives, goose geese, berry berries, wolf wolves, dish dishes"
)

_Question = tuple[str, str]


def _add(rng: random.Random) -> _Question:
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    return f"What is {a} + {b}? Answer with the number only.", str(a + b)


def _larger(rng: random.Random) -> _Question:
    a, b = rng.sample(range(1, 100), 2)
    return f"Which number is larger, {a} or {b}? Answer with the number only.", str(max(a, b))


def _first_letter(rng: random.Random) -> _Question:
    word = rng.choice(_WORDS)
    return f'What is the first letter of the word "{word}"? Answer with one letter.', word[0]


def _last_letter(rng: random.Random) -> _Question:
    word = rng.choice(_WORDS)
    return f'What is the last letter of the word "{word}"? Answer with one letter.', word[-1]


def _uppercase(rng: random.Random) -> _Question:
    word = rng.choice(_WORDS)
    return f'Write the word "{word}" in capital letters. Answer with the word only.', word.upper()


def _opposite(rng: random.Random) -> _Question:
    a, b = rng.choice(_OPPOSITES.split(", ")).split()
    return f'What is the opposite of "{a}"? Answer with one word.', b


def _plural(rng: random.Random) -> _Question:
    a, b = rng.choice(_PLURALS.split(", ")).split()
    return f'What is the plural of "{a}"? Answer with one word.', b


def _next_number(rng: random.Random) -> _Question:
    start, step = rng.randint(1, 30), rng.randint(1, 9)
    shown = ", ".join(str(start + step * i) for i in range(4))
    return f"What number comes next: {shown}? Answer with the number only.", str(start + step * 4)


def _second_word(rng: random.Random) -> _Question:
    words = rng.sample(_WORDS, 3)
    return f"Which word comes second in this list: {', '.join(words)}? Answer with the word only.", words[1]


_FAMILIES: tuple[Callable[[random.Random], _Question], ...] = (
    _add,
    _larger,
    _first_letter,
    _last_letter,
    _uppercase,
    _opposite,
    _plural,
    _next_number,
    _second_word,
)


def demo_rows(count: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """`count` rows with unique prompts: messages, and a `check` that scores any answer. The same for the same seed."""
    if count > MAX_ROWS:
        raise BadInput(f"demo has at most {MAX_ROWS:,} rows, {count:,} were asked for", remedy="lower data.subset")
    rng = random.Random(seed)
    found: dict[str, str] = {}
    turn = 0
    while len(found) < count:
        question, answer = _FAMILIES[turn % len(_FAMILIES)](rng)
        found.setdefault(question, answer)
        turn += 1
    return [
        {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "check": {"kind": "exact", "value": answer},
        }
        for question, answer in found.items()
    ]
