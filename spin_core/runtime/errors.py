"""Errors that a user can cause or must act on: one line that says what, where, and the remedy."""

from __future__ import annotations

from spin_core.runtime.redact import redact


class SpinflowError(Exception):
    """A problem with a cause that the user can act on. Printed as one line, never as a traceback."""

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(redact(f"{what}; {remedy}" if remedy else what))


class BadInput(SpinflowError):
    """The recipe or the data is wrong. Running it again without a change cannot help, so it is never retried."""


class Corrupt(SpinflowError):
    """An artifact on disk does not match its manifest."""


class ChildCrash(SpinflowError):
    """A child process ended with a non-zero status or by a signal. Worth a retry."""

    def __init__(self, what: str, *, exit_code: int, remedy: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.exit_code = exit_code


class Cancelled(SpinflowError):
    """The child was ended on purpose (SIGTERM); never retried."""


class Unreachable(SpinflowError):
    """The object store does not answer. Worth a retry."""
