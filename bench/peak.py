"""The peak resident memory of a child process, as the kernel counts it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from spin_core.process import descendants, live

_EVERY_S = 0.05


def peak_mb(pid: int | str) -> float:
    """The most that a process has held so far (VmHWM); raises OSError once it is gone."""
    status = Path(f"/proc/{pid}/status").read_text()
    return max((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), default=0.0)


class ChildPeak:
    """Watches the children whose command line names a module, and theirs: the largest single process counts.

    Read from /proc (VmHWM): `getrusage(RUSAGE_CHILDREN)` would count the parent's own pages, which a fork has until it execs.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self.mb = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            for pid in [pid for child in live() for pid in (child.pid, *descendants(child.pid))]:
                try:
                    if self._module in Path(f"/proc/{pid}/cmdline").read_text():
                        self.mb = max(self.mb, peak_mb(pid))
                except OSError:
                    continue
            time.sleep(_EVERY_S)
