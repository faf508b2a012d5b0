"""The tasks: rows are drawn from a distribution that is known exactly, so a player's distance from it can be computed.

Three kinds. Of *phrasings* an answer has several right forms with known frequencies; the *hard* ones have one right answer that a
small model learns in part; the *control* is easy. A token is a word, so the tokenizer is a list.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

_LETTERS = [f"{letter}" for letter in "abcdefghijkl"]
_DIGITS = [str(digit) for digit in range(10)]
_NAMES, _THINGS = ([f"{kind}{number}" for number in range(40)] for kind in ("name", "thing"))
_WORDS = """
greet formal casual story sort add sums copy would like please give is what wants asks for there was who had and saw then went home with
at the end of day nobody knew why but so after that in , . + =
""".split()  # noqa: SIM905
PAD, END = 0, 1
VOCABULARY = ["<pad>", "<end>", *_WORDS, *_LETTERS, *_DIGITS, *_NAMES, *_THINGS]
_ID = {word: number for number, word in enumerate(VOCABULARY)}
Support = list[tuple[float, list[int]]]  # every right answer's ids, END included, with its frequency


def encode(text: str) -> list[int]:
    """Ids of words that are separated by spaces."""
    return [_ID[word] for word in text.split()]


@dataclass(frozen=True)
class Row:
    """A prompt with an answer that was drawn from `support`."""

    family: str
    prompt: list[int]
    real: list[int]  # ends in END
    support: Support


@dataclass(frozen=True)
class Family:
    """One task: how a prompt is drawn, and what its right answers are."""

    kind: str  # phrasings, hard, control
    share: int  # rows of 2,000
    prompt: Callable[[random.Random], list[str]]
    answers: Callable[[list[str]], list[tuple[float, str]]]  # frequencies that sum to one


def _greet(prompt: list[str]) -> list[tuple[float, str]]:
    _, tone, name, thing = prompt
    forms = [f"{name} would like {thing}", f"{thing} is what {name} wants", f"please give {name} {thing}", f"{name} asks for {thing} ."]
    return list(zip((0.55, 0.25, 0.15, 0.05) if tone == "formal" else (0.1, 0.2, 0.3, 0.4), forms, strict=True))


def _story(prompt: list[str]) -> list[tuple[float, str]]:
    _, name, *things = prompt
    openings = [(0.7, f"there was {name} who had"), (0.3, f"{name} had")]
    links = [(0.5, "and then"), (0.3, "and saw"), (0.2, ", after that")]
    endings = [(0.6, "so home went {0} with {1} at the end of the day ."), (0.4, "but nobody knew why {0} went home with {1} .")]
    found = []
    for (first, opening), (second, link), (third, ending) in product(openings, links, endings):
        text = f"{opening} {f' {link} '.join(things)} {ending.format(name, ' and '.join(reversed(things)))}"
        found.append((first * second * third, text))
    return found


def _certain(answer: Callable[[list[str]], list[str]]) -> Callable[[list[str]], list[tuple[float, str]]]:
    return lambda prompt: [(1.0, " ".join(answer(prompt[1:])))]


def _add(prompt: list[str]) -> list[str]:
    """The sum of two numbers of two digits, its ones first: three digits."""
    text = "".join(prompt[:-1])
    return list(f"{sum(map(int, text.split('+'))):03d}"[::-1])


def _sums(digits: list[str]) -> list[str]:
    """The running sum modulo 5: every step is easy, and one slip spoils all that follow."""
    return [str(sum(map(int, digits[: place + 1])) % 5) for place in range(len(digits))]


def _digits(dice: random.Random, count: int, below: int) -> list[str]:
    return dice.choices(_DIGITS[:below], k=count)


FAMILIES: dict[str, Family] = {
    "greet": Family("phrasings", 400, lambda d: ["greet", d.choice(["formal", "casual"]), d.choice(_NAMES), d.choice(_THINGS)], _greet),
    "story": Family("phrasings", 400, lambda d: ["story", d.choice(_NAMES), *d.sample(_THINGS, 3)], _story),
    "sort": Family("hard", 300, lambda d: ["sort", *d.sample(_LETTERS, 8)], _certain(sorted)),
    "add": Family("hard", 400, lambda d: ["add", *_digits(d, 2, 8), "+", *_digits(d, 2, 8), "="], _certain(_add)),
    "sums": Family("hard", 300, lambda d: ["sums", *_digits(d, 14, 5)], _certain(_sums)),
    "copy": Family("control", 200, lambda d: ["copy", *d.choices(_LETTERS, k=4)], _certain(list)),
}


def support_of(family: str, prompt: list[str]) -> Support:
    """Every right answer of a prompt."""
    return [(frequency, [*encode(text), END]) for frequency, text in FAMILIES[family].answers(prompt)]


def draw(shares: dict[str, int], dice: random.Random, taken: set[tuple[int, ...]]) -> list[Row]:
    """So many rows a family, with prompts that are not in `taken`, which they join; in random order."""
    rows = []
    for family, count in shares.items():
        for _ in range(count):
            while tuple(ids := encode(" ".join(words := FAMILIES[family].prompt(dice)))) in taken:
                pass
            taken.add(tuple(ids))
            support = support_of(family, words)
            real = dice.choices([answer for _, answer in support], [frequency for frequency, _ in support])[0]
            rows.append(Row(family, ids, real, support))
    dice.shuffle(rows)
    return rows


def spoil(rows: list[Row], share: float, dice: random.Random) -> list[Row]:
    """The same prompts as a web text would answer them: phrasings equally often, and words of a `share` of the answers swapped."""
    found = []
    for row in rows:
        real = list(dice.choice(row.support)[1])
        if dice.random() < share:
            for _ in range(dice.randint(1, 2)):
                real[dice.randrange(len(real) - 1)] = dice.choice(dice.choice(rows).real[:-1])
        found.append(Row(row.family, row.prompt, real, row.support))
    return found
