"""The peak resident memory of a child process, as the kernel counts it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from spin_core.process import live

_EVERY_S = 0.05


class ChildPeak:
    """Watches the children whose command line names a module.

    Read from /proc (VmHWM): `getrusage(RUSAGE_CHILDREN)` would count the parent's own pages, which a fork has until it execs.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self.mb = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            for child in live():
                try:
                    if self._module in Path(f"/proc/{child.pid}/cmdline").read_text():
                        status = Path(f"/proc/{child.pid}/status").read_text()
                        peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
                        self.mb = max([self.mb, *(int(kb) / 1024 for kb in peaks)])
                except OSError:
                    continue
            time.sleep(_EVERY_S)
