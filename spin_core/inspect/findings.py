"""What `spinflow check` collects: facts to show, and problems to mend. It stops at none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from spin_core.runtime.errors import BadInput, Cancelled, SpinflowError

T = TypeVar("T")


class Findings:
    """Facts and problems in the order in which they were found."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, str]] = []
        self.problems: list[str] = []

    def fact(self, name: str, value: str) -> None:
        """A line of the table."""
        self.facts.append((name, value))

    def problem(self, what: str, *, remedy: str) -> None:
        """Something to mend; told once, however often it is met."""
        self._add(f"{what}; {remedy}")

    def trouble(self, error: SpinflowError) -> None:
        """The same, as a stage says it."""
        self._add(" ".join(str(error).split()))

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What `work` returns, or None and a problem where it says that something must be mended."""
        try:
            return work()
        except Cancelled:
            raise
        except SpinflowError as error:
            self.trouble(error)
        except OSError as error:
            self._add(str(BadInput(f"{type(error).__name__}: {' '.join(str(error).split())}", remedy="mend it and check again")))
        return None

    def show(self, console: Console, title: str) -> bool:
        """Prints the table, then `ready`, or the numbered list of what to mend. Whether nothing is to be mended."""
        table = Table(title=title, show_header=False)
        for name, value in self.facts:
            table.add_row(name, value)
        if self.facts:
            console.print(table)
        if not self.problems:
            console.print("ready", markup=False, highlight=False)
            return True
        console.print(f"to mend: {len(self.problems)}", markup=False, highlight=False)
        for number, problem in enumerate(self.problems, 1):
            console.print(f"{number}. {problem}", markup=False, highlight=False, soft_wrap=True)
        return False

    def _add(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)
