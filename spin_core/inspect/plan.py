"""`spinflow plan`: what a recipe will take: tokens and hours a stage, memory a GPU, disk; what does not fit, and which key makes it fit.

Lengths are those of the encoded rows; rates are measured by earlier runs in the home, or of a table of GPUs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spin_core.contracts.tables import count_rows, split_files
from spin_core.encoding.stage import Encode
from spin_core.inspect.rates import GPUS, Rates, measured, of_table, parse_gpus, row_tokens, weights_of
from spin_core.inspect.surroundings import SHARES_WEIGHTS, disk_bytes, weight_copies
from spin_core.players.files import read_json
from spin_core.players.stage import Import
from spin_core.recipe import Recipe
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.sources.stage import Prompts
from spin_core.store import Store

_JUDGE_S = 1.0  # an evaluator's child, which loads no model
_FLOW_S = 15.0  # Prefect's start and end


@dataclass(frozen=True)
class Lengths:
    """The encoded rows of a recipe: how many a split, and mean tokens."""

    rows: dict[str, int]
    prompt: float
    real: float
    sampled: float  # of earlier runs on these rows, or as long as the human answers
    seen: bool  # whether it is of earlier runs
    prepared_s: float  # what importing the model and reading the rows took

    @property
    def held_out(self) -> int:
        """Rows that every player answers."""
        return sum(count for split, count in self.rows.items() if split != "train")


@dataclass(frozen=True)
class Line:
    """One stage of an iteration."""

    iteration: int | None
    stage: str
    work: str
    seconds: float


@dataclass(frozen=True)
class Memory:
    """What one GPU, or the machine, has to hold in one stage."""

    stage: str
    need: float  # bytes
    have: float
    remedy: str


class Plan:
    """A recipe's stages with what they will take."""

    def __init__(self, recipe: Recipe, lengths: Lengths, rates: Rates, parameters: int) -> None:
        self._recipe, self._lengths, self._rates, self._parameters = recipe, lengths, rates, parameters

    def lines(self) -> Iterator[Line]:
        """In the order in which they run; what takes seconds whatever the size is left out."""
        child, rows = self._rates.child_s, self._lengths.rows
        yield Line(None, "import, tokenise", f"{sum(rows.values()):,} rows, done by now", self._lengths.prepared_s)
        if sft := self._recipe.sft:
            tokens = rows["train"] * (self._lengths.prompt + self._lengths.real) * sft.epochs
            work = f"{sft.epochs} epochs of {rows['train']:,} rows, {_count(tokens)} tokens"
            speed = self._rates.sft or self._rates.training
            yield Line(None, "warm start", work, child + 6.0 * self._parameters * tokens / speed)
        for iteration in range(len(self._recipe.iterations)):
            yield from self._iteration(iteration)
        yield Line(None, "between them", "looking up, starting, ending", _FLOW_S + self._rates.between_s * len(self._recipe.iterations))

    def _iteration(self, iteration: int) -> Iterator[Line]:
        recipe, lengths, rates = self._recipe.at(iteration), self._lengths, self._rates
        weights, child, training = self._parameters, rates.child_s, recipe.training
        samples = recipe.generation.samples_per_prompt
        asked = recipe.evaluation
        players = 2 if not iteration else 1  # θ_0's held-out answers are sampled in the first
        new = lengths.rows["train"] * samples
        sampled = new + players * lengths.held_out * (asked.samples + asked.greedy)
        requests = lengths.rows["train"] + players * lengths.held_out * (1 + (asked.samples > 1) + asked.greedy)
        tokens = sampled * lengths.sampled
        engines = 2 if not iteration else 1  # the new player's stays up for the next iteration
        start = rates.engine_s if recipe.generation.engine == "vllm" else 0.0  # the slow engine's loading is in its rate
        work = f"{sampled:,} answers, {_count(tokens)} tokens"
        computed = tokens + requests * lengths.prompt  # answers that are drawn in one request share its prompt
        yield Line(iteration, "sample", work, engines * start + 2.0 * weights * computed / rates.sampling)

        own = lengths.prompt + lengths.real + samples * lengths.sampled  # a row's tree
        played = iteration + bool(recipe.start_pairs)
        before = played if training.start == "initial" else min(played, recipe.carry_over)
        more = before * samples * lengths.sampled  # of earlier iterations, in the same tree
        tree = lengths.rows["train"] * (own + more)
        held = lengths.held_out * (lengths.prompt + lengths.real + lengths.sampled)
        work = f"{new * (1 + before):,} pairs, {_count(tree)} tokens; held-out ones twice"
        yield Line(iteration, "score", work, 2 * child + 2.0 * weights * (tree + 2 * held) / rates.scoring)

        epochs = training.stop_after_epochs or training.epochs
        steps = -(-new * (1 + before) * epochs // training.pairs_per_step)
        again = 4.0 / 3.0 if training.gradient_checkpointing else 1.0
        seconds = 6.0 * again * weights * tree * epochs / rates.training
        yield Line(iteration, "train", f"{steps:,} steps, {_count(tree * epochs)} tokens", child + seconds)
        if training.chooses:
            models = (1 + len(training.gammas)) * (epochs if training.choose_epoch else 1) + 1
            tokens = models * lengths.rows.get("validation", 0) * (lengths.prompt + lengths.real)
            yield Line(iteration, "choose", f"{models} models", 2 * child + 2.0 * weights * tokens / rates.scoring)
        judges = len(asked.evaluators) + len(asked.custom)
        yield Line(iteration, "judge", f"{judges} evaluators, {players} players", judges * players * _JUDGE_S)

    def memory(self, gpus: int, each: float, width: int, layers: int) -> Iterator[Memory]:
        """For `gpus` of `each` bytes; activations: 34 bytes a token, layer and channel in bf16, or 2 (arXiv 2205.05198)."""
        training, weights = self._recipe.training, self._parameters
        share = gpus if SHARES_WEIGHTS[training.sharding] else 1
        a_token = layers * width * (2.0 if training.gradient_checkpointing else 34.0)
        need = 4.0 * weights * weight_copies(training) / share + 2.0 * weights / share + training.tokens_per_micro_batch * a_token
        remedies = [
            *([] if training.gradient_checkpointing else ["training.gradient_checkpointing: true"]),
            *(["training.sharding: fsdp2"] if gpus > 1 and not SHARES_WEIGHTS[training.sharding] else []),
            "a smaller training.tokens_per_micro_batch",
            *([] if training.lora else ["training.lora: {}"]),
        ]
        yield Memory("train", need, each, ", ".join(remedies))
        tensor = self._recipe.generation.tensor_parallel
        room = each * self._recipe.generation.gpu_memory
        need = 2.0 * weights / tensor + 2e9  # room for the cache of a few sequences at least
        yield Memory("sample", need, room, f"generation.tensor_parallel: {2 * tensor}")


def _count(number: float) -> str:
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{name}"
    return f"{number:.0f}"


def look_up(store: Store, recipe: Recipe, rates: Rates | None) -> tuple[Lengths, int, Path]:
    """Builds what tells the lengths: θ_0, its prompts and their ids, as a run will; with the model's size and folder."""
    on = Launcher(store, recipe.name)
    prompts, model = on.build(Prompts(recipe.data, store.home)), on.build(Import(recipe.model, store.home))
    encoded = on.build(Encode.of(recipe, model, prompts))
    prompt, real = row_tokens(encoded.path)
    rows = {split: count_rows(file) for split, file in split_files(encoded.path).items()}
    sampled = (rates.lengths if rates else {}).get(encoded.digest)
    prepared = sum(ref.facts["seconds"] for ref in (prompts, model, encoded))
    lengths = Lengths(rows, prompt, real, real if sampled is None else sampled, sampled is not None, prepared)
    return lengths, weights_of(model), model.path


def show(store: Store, recipe: Recipe, gpus: str | None, console: Console) -> bool:
    """Prints the plan. Whether everything fits. Raises BadInput where neither the home nor a table knows how fast this machine is."""
    known = measured(store)
    rates = of_table(*parse_gpus(gpus)) if gpus else known
    if rates is None:
        raise BadInput(
            f"no run in {store.home} tells this machine's speed", remedy="run the demo with this --home once, or give --gpus 8xH100"
        )
    lengths, parameters, folder = look_up(store, recipe, known)
    plan = Plan(recipe, lengths, rates, parameters)
    table = Table(title=f"{recipe.name}: what it will take")
    for column in ("iteration", "stage", "work", "time"):
        table.add_column(column, justify="right" if column == "time" else "left")
    lines = list(plan.lines())
    for line in lines:
        table.add_row("" if line.iteration is None else str(line.iteration), line.stage, line.work, _time(line.seconds))
    table.add_row("", "all", "", _time(sum(line.seconds for line in lines)), style="bold")
    console.print(table)
    length = f"{lengths.prompt:.0f} tokens a prompt, {lengths.real:.0f} a human answer, {lengths.sampled:.0f} a sampled one"
    guess = "as earlier runs sampled" if lengths.seen else "taken to be as long as the human ones"
    console.print(f"{parameters / 1e6:,.1f}M parameters; {length} ({guess}); rates of {rates.source}", style="dim", soft_wrap=True)
    fits = [_fits("disk", disk_bytes(recipe, parameters), float(shutil.disk_usage(store.home).free), "--home on a larger disk", console)]
    if gpus:
        count, name = parse_gpus(gpus)
        config = read_json(folder / "config.json")
        width, layers = int(config.get("hidden_size", 0)), int(config.get("num_hidden_layers", 0))
        for need in plan.memory(count, GPUS[name].memory_gb * 1e9, width, layers):
            fits.append(_fits(f"{need.stage}: memory of a GPU", need.need, need.have, need.remedy, console))
    return all(fits)


def _fits(what: str, need: float, have: float, remedy: str, console: Console) -> bool:
    fits = need <= have
    says = "" if fits else f": does not fit; {remedy}"
    console.print(f"{what}: about {need / 2**30:,.1f} of {have / 2**30:,.1f} GiB{says}", style="" if fits else "red", soft_wrap=True)
    return fits


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
