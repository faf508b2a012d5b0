"""Played campaigns made by hand, for tests of what people are shown: every artifact that a page reads, no model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from spin_core.campaign.ledger import Ledger
from spin_core.contracts.rows import GREEDY, PAIRS, PAIRS_OF, PROMPTS, SCORES_OF, SHARD
from spin_core.contracts.tables import TableWriter, write_rows
from spin_core.evaluation.stage import SAMPLES
from spin_core.judging.evaluators import Figure
from spin_core.judging.figures import write_figures
from spin_core.recipe import Recipe
from spin_core.scoring.scores import SHARD_SCORES, join_shards
from spin_core.store import Ref, Spec, Store

_WORDS = "the of self play model answer prompt learns human likely margin token step loss data better what then number is"
WORDS = _WORDS.split(" ")
Text = Callable[[random.Random], str]
BETTER = {"checks": ("share", "higher"), "greedy": ("share", "higher"), "nll": ("nats", "lower"), "tokens": ("tokens", None)}
BETTER |= {"unfinished": ("share", "lower"), "entropy": ("nats", None)}
_CURVES = ("loss", "rewards/margins", "rewards/accuracies", "grad_norm", "logratio/real", "logratio/generated")


def recipe_of(turns: int, name: str = "made") -> Recipe:
    """A recipe of so many iterations."""
    content = {"name": name, "model": {"name": "m"}, "data": {"name": "demo"}, "iterations": [{}] * turns}
    return Recipe.model_validate(content)


def words(count: int) -> Text:
    """A text of so many words."""
    return lambda dice: " ".join(dice.choices(WORDS, k=count))


def spread(values: np.ndarray) -> dict[str, Any]:
    """A figure with a normal interval: a bootstrap of thousands of rows takes seconds."""
    half = 1.96 * float(values.std()) / max(1, len(values)) ** 0.5
    value = float(values.mean())
    return {"value": value, "low": value - half, "high": value + half, "prompts": len(values)}


_PROMPT, _ANSWER = words(12), words(8)


class Made:
    """Builds a campaign in a store, iteration by iteration."""

    def __init__(
        self,
        store: Store,
        rows: int,
        turns: int,
        prompt: Text = _PROMPT,
        answer: Text = _ANSWER,
        samples: int = 2,
        warning: str = "",
    ) -> None:
        self.store, self.recipe, self.rows = store, recipe_of(turns), rows
        self.dice, self.noise = random.Random(0), np.random.default_rng(0)
        self.ids = [f"{number:016x}" for number in range(rows)]
        self._answer, self._samples = answer, samples
        self._warnings = {"pushed_down": warning} if warning else {}
        self._talks = [self._talk(prompt) for _ in self.ids]
        self._prompts = self._build("prompts", "", self._write_prompts)
        self._values = [self._player(number) for number in range(turns + 1)]
        self._shards = [self._sampled(number) for number in range(turns + 1)]
        for turn in range(turns):
            self._play(turn)

    def only(self, rows: list[int]) -> Ref:
        """The prompts of some rows, as a campaign on a subset has them."""
        self.ids, self._talks = [self.ids[i] for i in rows], [self._talks[i] for i in rows]
        return self._build("prompts", "few", self._write_prompts)

    def _talk(self, prompt: Text) -> list[dict[str, str]]:
        return [{"role": "user", "content": prompt(self.dice)}, {"role": "assistant", "content": self._answer(self.dice)}]

    def _build(self, kind: str, name: str, write: Callable[[Path], Any], **facts: Any) -> Ref:
        def run(out: Path) -> Mapping[str, Any]:
            write(out)
            return facts

        return self.store.build(Spec(kind, 1, {"name": name}), run)

    def _write_prompts(self, out: Path) -> None:
        rows = [
            {"row_id": row, "real": talk, "generated": talk, "source": "made", "row_number": 1, "check": '{"kind": "exact", "value": "4"}'}
            for row, talk in zip(self.ids, self._talks, strict=True)
        ]
        write_rows(out / "test.parquet", rows, PROMPTS)

    def _player(self, number: int) -> dict[str, np.ndarray]:
        found = {name: self.noise.uniform(0, 1, self.rows) + 0.2 * number for name in BETTER}
        return found | {"checks": (self.noise.uniform(0, 1, self.rows) < 0.3 + 0.1 * number).astype(np.float64)}

    def _sampled(self, number: int) -> tuple[Ref, Ref]:
        def write(samples: list[int]) -> Callable[[Path], None]:
            def to(out: Path) -> None:
                with TableWriter(out / "shard.parquet", SHARD) as writer:
                    for start in range(0, self.rows, 500):
                        rows = [self._sample(row, sample) for row in self.ids[start : start + 500] for sample in samples]
                        writer.write(pa.Table.from_pylist(rows, schema=SHARD))

            return to

        facts = {"started": 0.0, "ended": 1.0, "tokens": 5, "rows": self.rows}
        more = [*range(1, self._samples), GREEDY]
        return self._build("shard", f"{number}", write([0]), **facts), self._build("shard", f"more {number}", write(more), **facts)

    def _sample(self, row: str, sample: int) -> dict[str, Any]:
        text = self._answer(self.dice)
        found: dict[str, Any] = {"row_id": row, "sample": sample, "prompt_ids": [1], "generated_ids": list(range(len(text.split())))}
        return found | {"finish_reason": "stop", "generated": text, "logp": -1.0}

    def _judged(self, number: int) -> Ref:
        def write(out: Path) -> None:
            figures = {name: Figure(values.tolist(), *BETTER[name]) for name, values in self._values[number].items()}  # type: ignore[arg-type]
            write_figures(out, "test", self.ids, figures)

        return self._build("judged", f"{number}", write)

    def _benchmark(self, number: int) -> Ref:
        """Its documents are no held-out rows."""

        def write(out: Path) -> None:
            write_figures(out, "test", ["doc 1", "doc 2"], {"gsm8k": Figure([1.0, 0.0], "share", "higher")})

        return self._build("judged", f"benchmark {number}", write)

    def _pairs(self, turn: int) -> Ref:
        same = {"iteration": turn, "sample": 0, "prompt_ids": [1], "generated_ids": [4, 5], "finish_reason": "stop", "check": None}

        def row(i: int) -> dict[str, Any]:
            talk = self._talks[i]
            return same | {"row_id": self.ids[i], "real": talk, "generated": talk, "real_ids": [3] * (2 + i % 5)}

        def write(out: Path) -> None:
            with TableWriter(out / PAIRS_OF["test"], PAIRS) as writer:
                for start in range(0, self.rows, 500):
                    rows = [row(i) for i in range(start, min(self.rows, start + 500))]
                    writer.write(pa.Table.from_pylist(rows, schema=PAIRS))

        shortcuts = {"first_token": 0.53, "last_token": 0.5, "length": 0.93, "unfinished": 0.5}
        facts = {"pairs": self.rows, "carried": 0, "identical": 0, "shortcuts": shortcuts}
        return self._build("pairs", f"{turn}", write, **facts)

    def _scored(self, turn: int, name: str, margin: float) -> Ref:
        def write(out: Path) -> None:
            values = self.noise.normal(margin, 2.0, self.rows)
            columns = {
                "row_id": self.ids,
                "iteration": [turn] * self.rows,
                "sample": [0] * self.rows,
                "real_logp": (values - 20.0).tolist(),
            }
            columns |= {"generated_logp": [-20.0] * self.rows, "real_tokens": [3] * self.rows}
            with TableWriter(out / "part", SHARD_SCORES) as writer:
                writer.write(pa.table(columns, schema=SHARD_SCORES))
            join_shards([out / "part"], out / SCORES_OF["test"])
            (out / "part").unlink()

        return self._build("reference", f"{name} {turn}", write, pairs_per_s=9.0)

    def _model(self, name: str, steps: int = 0) -> Ref:
        def write(out: Path) -> None:
            lines = [{"step": step + 1} | {key: 0.7 - 0.5 * step / max(1, steps) for key in _CURVES} for step in range(steps)]
            (out / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

        return self._build("model", name, write, steps=steps, pairs_per_s=2.0, beta=0.1)

    def _play(self, turn: int) -> None:
        before, after, start = (self._values[number] for number in (turn, turn + 1, 0))
        test = {who: {name: spread(values) for name, values in player.items()} for who, player in (("before", before), ("after", after))}
        test["gained"] = {name: spread(after[name] - before[name]) for name in before}
        test["over_start"] = {name: spread(after[name] - start[name]) for name in before}
        test["game"] = {"won": spread(np.array([1.0, 1.0, 0.0, 1.0])), "margin": spread(np.array([0.1, 0.2]))}
        content = {
            "iteration": turn,
            "figures": {name: {"unit": unit, "better": better} for name, (unit, better) in BETTER.items()},
            "splits": {"test": test},
            "diagnostics": {"figures": {"margin": 1.2, "pushed_down": 0.4}, "warnings": self._warnings},
        }

        def write(out: Path) -> None:
            (out / "metrics.json").write_text(json.dumps(content))
            sample = {"prompt": self._talks[0][0]["content"], "real": self._talks[0][1]["content"], "before": "b", "after": "a"}
            write_rows(out / "samples.parquet", [sample], SAMPLES)

        made: dict[str, Any] = {"prompts": self._prompts, "start": self._model("0"), "opponent": self._model(f"{turn}", 40 if turn else 0)}
        made |= {"pairs": self._pairs(turn), "reference": self._scored(turn, "before", 0.0), "scored": self._scored(turn, "after", 1.0)}
        made |= {"model": self._model(f"{turn + 1}", 40), "evaluation": self._build("evaluation", f"{turn}", write)}
        made |= {} if turn else {"start-judged-all": self._judged(0)}
        made |= {"judged-all": self._judged(turn + 1), "judged-harness": self._benchmark(turn + 1), "train_shards": ()}
        for name, number in (("", turn), ("new_", turn + 1)):
            first, more = self._shards[number]
            made |= {f"{name}test_shards": (first,), f"{name}more_test_shards": (more,)}
        Ledger(self.store, self.recipe.name).note(turn, self.recipe, made, turn)
