"""`spinflow check`: what would fail an hour into a run, found in a minute.

It runs the stages that come before sampling as the run will, so a run after it finds them done, loads the model as scoring and
training will, and looks at the machine. It stops at nothing: the end is `ready`, or the list of all that is to be mended.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from spin_core.contracts.tables import read_rows
from spin_core.encoding.ends import Ends, read_ends
from spin_core.encoding.stage import Encode
from spin_core.generation.pool import engine_devices
from spin_core.generation.vllm_server import engine_arguments, installed
from spin_core.inspect.findings import Findings
from spin_core.inspect.surroundings import look_around, look_at_size, require_home
from spin_core.judging.evaluators import known
from spin_core.pairs.published import Published
from spin_core.players.files import read_json
from spin_core.players.limits import positions, require_positions
from spin_core.players.stage import Import
from spin_core.recipe import Recipe
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.sources.stage import Prompts
from spin_core.store import Ref, Store

_SHOWN = 5  # bad rows of a stage that are told one by one


def check(store: Store, recipe: Recipe, console: Console) -> bool:
    """Prints facts and a rendered row, and last `ready` or what is to be mended. Whether it is ready."""
    found = Findings()
    if found.attempt(lambda: require_home(store.home)):
        look_around(found, recipe)
        _look_at_stages(found, store, recipe, console)
    return found.show(console, f"spinflow check · {recipe.name}")


def _look_at_stages(found: Findings, store: Store, recipe: Recipe, console: Console) -> None:
    on = Launcher(store, recipe.name)
    for name in (*recipe.evaluation.evaluators, *recipe.evaluation.custom):
        found.attempt(partial(known, name))
    model = found.attempt(lambda: on.build(Import(recipe.model, store.home)))
    prompts = _prompts(found, on, recipe)
    if prompts:
        found.fact("rows", prompts.facts["message"] + _where(prompts, "rejected.parquet", prompts.facts["rejected"]))
    fitting = _fitting(found, recipe, model) if model else recipe
    encoded = _encoded(found, on, fitting, model, prompts) if model and prompts else None
    if encoded:
        facts = encoded.facts
        rendered = f"{facts['train']:,} rows to train on, {facts['test']:,} held out, "
        rendered += f"{facts['validation']:,} to choose on, " if "validation" in facts else ""
        rendered += "each prompt an exact prefix of its conversation"
        found.fact("rendered", rendered + (f"\n{_bad_rows('left out', encoded.path / 'left_out.parquet')}" if facts["left_out"] else ""))
        found.fact("a turn ends in", _ends(read_ends(encoded.path)))
        for warning in facts["warnings"]:
            found.fact("mind", warning)
        if model and (published := Published.of(fitting, model, encoded, store.home)):
            made = found.attempt(lambda: on.build(published))
            if made:
                found.fact("published pairs", made.facts["message"])
    if model:
        _ask_engine(found, on, fitting, model)
        loaded = _loaded(found, store, recipe, model, encoded)
        if loaded:
            _tell(found, recipe, loaded, console)
            look_at_size(found, recipe, store.home, loaded["parameters"])


def _fitting(found: Findings, recipe: Recipe, model: Ref) -> Recipe:
    """The recipe, with the prompt limit that the model's positions allow where its own is too high: so the rows are looked at too."""
    answer = recipe.generation.max_new_tokens
    if found.attempt(lambda: require_positions(model.path, recipe.data.max_prompt_tokens, answer)):
        return recipe
    most = positions(read_json(model.path / "config.json")) or 0
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_prompt_tokens": max(1, most - answer)})})


def _prompts(found: Findings, on: Launcher, recipe: Recipe) -> Ref | None:
    """The prompts; where bad rows stop them, those of the rest, with the bad ones told."""
    try:
        return on.build(Prompts(recipe.data, on.store.home))
    except BadInput as error:
        lenient = recipe.data.model_copy(update={"on_bad_row": "skip"})
        rest = _quietly(lambda: on.build(Prompts(lenient, on.store.home))) if recipe.data.on_bad_row == "error" else None
        if rest is None or not rest.facts["rejected"]:
            found.trouble(error)
            return None
        found.problem(_bad_rows("data", rest.path / "rejected.parquet"), remedy="mend these rows, or set data.on_bad_row=skip")
        return rest


def _encoded(found: Findings, on: Launcher, recipe: Recipe, model: Ref, prompts: Ref) -> Ref | None:
    """Every row as ids; where rows stop it that cannot be rendered or are too long, the rest, with those told."""
    try:
        return on.build(Encode.of(recipe, model, prompts))
    except BadInput as error:
        lenient = recipe.model_copy(update={"data": recipe.data.model_copy(update={"on_bad_row": "skip"})})
        rest = _quietly(lambda: on.build(Encode.of(lenient, model, prompts))) if recipe.data.on_bad_row == "error" else None
        if rest is None or not rest.facts["left_out"]:
            found.trouble(error)
            return None
        found.problem(_bad_rows("rendering", rest.path / "left_out.parquet"), remedy="mend these rows, or set data.on_bad_row=skip")
        return rest


def _loaded(found: Findings, store: Store, recipe: Recipe, model: Ref, encoded: Ref | None) -> dict[str, Any] | None:
    """What a child says that loads the model as the run will."""
    report = store.home / f".preflight-{recipe.name}.json"
    job: dict[str, Any] = {"model": str(model.path), "encoded": str(encoded.path) if encoded else None, "out": str(report)}
    job |= {
        "training": recipe.training.model_dump(mode="json"),
        "answer": recipe.generation.max_new_tokens,
        "prompt": recipe.data.max_prompt_tokens,
    }

    def run() -> dict[str, Any]:
        process.run_job("spin_core.inspect.job", job, store.log_path(f"preflight-{recipe.name}"), name="preflight")
        told: dict[str, Any] = json.loads(report.read_text())
        return told

    try:
        return found.attempt(run)
    finally:
        report.unlink(missing_ok=True)


def _ask_engine(found: Findings, on: Launcher, recipe: Recipe, model: Ref) -> None:
    """Has vLLM read the command line and the model's config, where it is the engine and installed."""
    if recipe.generation.engine != "vllm" or not installed():
        return
    longest = recipe.data.max_prompt_tokens + recipe.generation.max_new_tokens
    group = engine_devices(recipe.generation.engine)[: recipe.generation.tensor_parallel]
    job = {"model": str(model.path), "arguments": engine_arguments(longest, group, recipe.generation)}
    found.attempt(lambda: on.job("spin_core.inspect.engine_job", job, f"preflight-{recipe.name}-engine", "asking vLLM"))


def _tell(found: Findings, recipe: Recipe, loaded: dict[str, Any], console: Console) -> None:
    found.fact("model", f"{recipe.model.name} · {loaded['parameters'] / 1e6:,.1f}M parameters · {loaded['architecture']}")
    found.fact("step", loaded["step"])
    for problem in loaded["problems"]:
        found.problem(problem["what"], remedy=problem["remedy"])
    if "prompt" in loaded:
        found.fact("human answers", f"{loaded['nats']:.2f} nats a token under θ_0, {loaded['tokens']} tokens looked at")
        console.print("[bold]a row as the model sees it[/bold]")
        console.print(loaded["prompt"] + loaded["answer"], markup=False, highlight=False)


def _ends(ends: Ends) -> str:
    others = [text for text, token in zip(ends.texts, ends.ids, strict=True) if token != ends.template]
    own = ends.texts[ends.ids.index(ends.template)]
    return f"{own} (after a human answer)" + (f"; {', '.join(others)} (where a sampled one emits it)" if others else "")


def _bad_rows(what: str, file: Path) -> str:
    rows = read_rows(file)
    shown = "; ".join(f"row {row['row_number']}: {row['reason']}" for row in rows[:_SHOWN])
    return f"{what}: {len(rows):,} rows cannot be used: {shown}" + (f"; all of them in {file}" if len(rows) > _SHOWN else "")


def _quietly(work: Any) -> Ref | None:
    try:
        ref: Ref = work()
        return ref
    except BadInput:
        return None


def _where(ref: Ref, name: str, count: int) -> str:
    return f"\n{ref.path / name}" if count else ""
