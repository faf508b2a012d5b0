"""Which of several tries at one training may write. A node that its cluster gave up may live on, and its child with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from transformers import TrainerCallback

from spin_core.runtime.errors import ChildCrash

_FILE = "attempt"


class Attempt(TrainerCallback):  # type: ignore[misc]
    """This one, from now on: whoever trained in `work` before ends at its next step. Rank 0 keeps watch, the others need it."""

    def __init__(self, work: Path) -> None:
        self._file, self._mine = work / _FILE, uuid4().hex
        self._watches = os.environ.get("RANK", "0") == "0"
        if self._watches:
            self._file.write_text(self._mine)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the step's checkpoint is written."""
        self.require()

    def require(self) -> None:
        """Raises ChildCrash where another attempt has begun, or the training was finished without this one."""
        if not self._watches:
            return
        try:
            if self._file.read_text() == self._mine:
                return
        except FileNotFoundError:
            pass
        raise ChildCrash("another attempt has taken this training over", exit_code=-1)
