"""The `spinflow` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from flows import handover, options
from flows.options import DEFAULT_HOME, Home, LogFormat, LogLevel, Overrides, RecipePath, Verbose
from spin_core.official import commands as official
from spin_core.recipe import Recipe, load_recipe
from spin_core.runtime import surroundings
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.store import Store

app = typer.Typer(
    help="Self-Play Fine-Tuning (SPIN): make an SFT model better with the data it was tuned on, no new labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command(rich_help_panel=options.BEGIN)
def check(recipe: RecipePath, overrides: Overrides = None, home: Home = DEFAULT_HOME) -> None:
    """Look before you leap: model, template, every row, engine, memory, disk. The end is "ready", or what to mend (status 2)."""
    from spin_core.inspect.check import check as preflight

    loaded, store = _load(recipe, overrides, home)
    if not preflight(store, loaded, Console()):
        raise typer.Exit(2)


@app.command(rich_help_panel=options.BEGIN)
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    home: Home = DEFAULT_HOME,
    gpus: Annotated[str | None, typer.Option("--gpus", metavar="COUNTxNAME", help="As 8xH100; else as earlier runs here.")] = None,
) -> None:
    """Say what a recipe will take before it runs: tokens and hours a stage, memory, disk, and what does not fit (status 2)."""
    from spin_core.inspect.plan import show

    loaded, store = _load(recipe, overrides, home)
    if not show(store, loaded, gpus, Console()):
        raise typer.Exit(2)


@app.command(rich_help_panel=options.BEGIN)
def keys(word: Annotated[str, typer.Argument(help="Only keys with this word, e.g. training or beta.")] = "") -> None:
    """Every key of a recipe: type, bounds, default and what it does."""
    from spin_core.report.keys import show

    show(word, Console())


@app.command(rich_help_panel=options.PLAY)
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    home: Home = DEFAULT_HOME,
    verbose: Verbose = False,
    log_format: LogFormat = "text",
    log_level: LogLevel = "INFO",
) -> None:
    """Play all iterations. After a crash, the same command continues; what is done is not done again."""
    loaded = load_recipe(recipe, overrides)  # bad input is told in a second, before Prefect is imported
    _prepare_prefect(home)
    from flows.campaign import spin_campaign
    from flows.main import run_flow

    run_flow(spin_campaign, loaded, home, verbose, log_format, log_level)


@app.command(rich_help_panel=options.PLAY)
def iterate(
    recipe: RecipePath,
    overrides: Overrides = None,
    home: Home = DEFAULT_HOME,
    verbose: Verbose = False,
    log_format: LogFormat = "text",
    log_level: LogLevel = "INFO",
) -> None:
    """Play the next iteration only."""
    loaded = load_recipe(recipe, overrides)
    _prepare_prefect(home)
    from flows.iteration import spin_iteration
    from flows.main import run_flow

    run_flow(spin_iteration, loaded, home, verbose, log_format, log_level)


@app.command(rich_help_panel=options.PLAY)
def status(
    recipe: RecipePath,
    overrides: Overrides = None,
    home: Home = DEFAULT_HOME,
    follow: Annotated[bool, typer.Option("--watch", help="Stay, and show a run of another process: progress, rates, time left.")] = False,
) -> None:
    """Show the table of the iterations that are done, and for every stage whether it is done, would run, or would run again and why."""
    from spin_core.report.stages import show_stages
    from spin_core.report.table import show
    from spin_core.report.watch import watch

    loaded, store = _load(recipe, overrides, home)
    console = Console()
    if follow:
        watch(store, loaded, console)
        return
    show(store, loaded, console)
    show_stages(store, loaded, console)


@app.command(rich_help_panel=options.JUDGE)
def compare(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE …", help="Two recipes or more.")], home: Home = DEFAULT_HOME
) -> None:
    """Lay campaigns side by side: their best models on the same held-out rows, and how much each has more than the first one's."""
    from spin_core.report.compare import show

    show(Store(home), [load_recipe(recipe) for recipe in recipes], Console())


@app.command(rich_help_panel=options.JUDGE)
def branch(
    recipe: RecipePath,
    start: Annotated[int, typer.Option("--from", metavar="N", min=0, help="The first iteration that is played otherwise.")],
    name: Annotated[str, typer.Option("--name", help="Of the new campaign; its recipe is NAME.yaml beside RECIPE.")],
    overrides: Overrides = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Begin a campaign at an iteration of another one, with other settings from there on; what is the same is shared, not done again."""
    from spin_core.campaign.branch import branch as begin

    file = recipe.with_name(f"{name}.yaml")
    begin(Store(home), load_recipe(recipe), start, name, overrides or [], file)
    print(f"wrote {file}; `spinflow run {file}` plays what is new")


@app.command(rich_help_panel=options.KEEP)
def doctor(home: Home = DEFAULT_HOME) -> None:
    """Collect versions, devices, disk, ports and the last errors into one text for a bug report; no secrets in it."""
    from spin_core.inspect.doctor import examine

    print(examine(Store(home)))


def _load(recipe: Path, overrides: list[str] | None, home: str) -> tuple[Recipe, Store]:
    return load_recipe(recipe, overrides), Store(home)


def _prepare_prefect(home: str) -> None:
    """Sees that the home can be used, and sets what must be set before Prefect is imported."""
    surroundings.settle(Store(home).home)
    settings = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default 20 s is missed on a busy laptop
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        # a run's own server has no automations; each writer less is a chance less of SQLite's lock, which Prefect waits a minute for
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


app.add_typer(handover.app)
official.attach(app)


def main() -> None:
    """Entry point: one line for what the user can mend, never a traceback for it."""
    try:
        surroundings.prepare()
        app(standalone_mode=True)
    except SpinflowError as error:
        _leave(error)
    except OSError as error:
        told = surroundings.as_told(error)
        if told is None:
            raise
        _leave(told)


def _leave(error: SpinflowError) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2 if isinstance(error, BadInput) else 1) from None


if __name__ == "__main__":
    main()
