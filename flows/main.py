"""A flow at a terminal: bars while it runs, a table at the end, one-line errors."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect.settings import get_current_settings
from rich.console import Console

from spin_core.recipe import Recipe
from spin_core.report.live import bars
from spin_core.report.page.write import write_page
from spin_core.report.table import show
from spin_core.runtime import leftovers, process, surroundings
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.store import Store

_SILENT = logging.CRITICAL + 1


def run_flow(flow: Callable[..., Any], recipe: Recipe, home: str, verbose: bool, log_format: str, log_level: str) -> None:
    """Runs a flow with bars while it runs and the campaign's table at the end; leaves the process with a status where it fails."""
    console = Console()
    leftovers.guard()
    _leave_on_signal()
    _set_up_logs(verbose, log_format, log_level)
    try:
        _check_server()
        store = Store(home)
        with nullcontext() if log_format == "json" else bars(console):
            state = flow(recipe=recipe, home=home, return_state=True)
            if not state.is_completed():
                state.result()
        show(store, recipe, console)
        console.print(f"report: {write_page(store, recipe)}", soft_wrap=True)
        if state.name == "NothingToDo":
            console.print(f"nothing to do: {state.message}", soft_wrap=True)
    except (SpinflowError, OSError) as error:
        told = error if isinstance(error, SpinflowError) else surroundings.as_told(error)
        if told is None:
            raise
        text = " ".join(str(told).split())
        print(json_line("ERROR", text) if log_format == "json" else f"error: {text}", file=sys.stderr)
        raise SystemExit(2 if isinstance(told, BadInput) else 1) from None


def _set_up_logs(verbose: bool, log_format: str, level: str) -> None:
    """What is not shown on the console still goes to the run's log file, to the API and to the UI."""
    logging.getLogger("prefect").setLevel(level)
    for logger in (logging.getLogger(), logging.getLogger("prefect._internal")):
        for handler in logger.handlers:
            if log_format == "json":
                handler.setFormatter(JsonLines())
            elif not verbose:
                handler.setLevel(_SILENT)


class JsonLines(logging.Formatter):
    """A JSON object a line. Prefect's own formatter leaves messages and their arguments apart."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, severity, logger and message, with the names of the flow and the task run where there are any."""
        names = {key: value for key in ("flow_run_name", "task_run_name") if (value := getattr(record, key, None))}
        trace = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return json_line(record.levelname, record.getMessage(), record.created, logger=record.name, **names, **trace)


def json_line(severity: str, message: str, at: float | None = None, **more: str) -> str:
    """One log line."""
    when = datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": when, "severity": severity, "message": message, **more}, ensure_ascii=False)


def _check_server() -> None:
    """A server that is configured but gone would keep the client trying for minutes."""
    url = get_current_settings().api.url
    try:
        if url and httpx.get(f"{url}/health", timeout=10.0).status_code >= 500:
            raise httpx.TransportError("the server is not healthy")
    except httpx.TransportError:
        remedy = "start it with `make up`, or unset PREFECT_API_URL (or remove prefect.toml) to run without a server"
        raise BadInput(f"the Prefect server at {url} does not answer", remedy=remedy) from None


def _leave_on_signal() -> None:
    """Ctrl-C ends the process at once. It reaches Prefect's ephemeral server too, whose client would retry for minutes.

    A SIGTERM in mid-flow goes to Prefect first, which unwinds the flow and then calls this handler.
    """

    def leave(number: int, _frame: object) -> None:
        process.leave("stopped; run the same command again to continue", 128 + number)

    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
