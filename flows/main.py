"""`python -m flows.campaign` and `python -m flows.iteration`: a recipe in, a table out, one-line errors."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from flows.session import DEFAULT_HOME
from spin_core import process
from spin_core.errors import BadInput, SpinflowError
from spin_core.recipe import load_recipe
from spin_core.report.live import bars
from spin_core.report.page import write_page
from spin_core.report.table import show
from spin_core.store import Store


def main(flow: Callable[..., str]) -> None:
    """Runs a flow from the command line with bars while it runs and the campaign's table at the end."""
    parser = argparse.ArgumentParser(description=flow.__doc__)
    parser.add_argument("recipe", type=Path, help="a YAML file; see recipes/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a recipe key")
    parser.add_argument("--home", default=DEFAULT_HOME, help="where artifacts live")
    parser.add_argument("--verbose", action="store_true", help="show Prefect's log lines; otherwise they go to <home>/logs/prefect.log")
    arguments = parser.parse_args()
    console = Console()
    process.guard()
    _leave_on_interrupt(console)
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        store = Store(Path(arguments.home))
        if not arguments.verbose:
            _log_to(store.log_path("prefect"))
        with bars(console):
            flow(recipe=recipe, home=arguments.home)
        show(store, recipe, console)
        console.print(f"report: {write_page(store, recipe)}", soft_wrap=True)
    except SpinflowError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, BadInput) else 1) from None


def _log_to(path: Path) -> None:
    """Sends what Prefect would print to a file, in the same format. Its records still reach the API and the UI."""
    for logger in (logging.getLogger(), logging.getLogger("prefect._internal")):
        for console in list(logger.handlers):
            handler = logging.FileHandler(path, delay=True)
            handler.setFormatter(console.formatter)
            logger.removeHandler(console)
            logger.addHandler(handler)


def _leave_on_interrupt(console: Console) -> None:
    """Ctrl-C ends the process at once. It reaches Prefect's ephemeral server too, whose client would retry for minutes."""

    def leave(_signal: int, _frame: object) -> None:
        process.end_all()
        console.show_cursor()
        print("stopped; run the same command again to continue", file=sys.stderr, flush=True)
        os._exit(130)  # artifacts are whole or absent, so there is nothing to unwind

    signal.signal(signal.SIGINT, leave)
