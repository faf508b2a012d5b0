"""The peak resident memory of a child process, as the kernel counts it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from spin_core.runtime.process import descendants, live, peak_rss

_EVERY_S = 0.05


class ChildPeak:
    """Watches the children whose command line names a module, and theirs: the largest single process counts, in MiB."""

    def __init__(self, module: str) -> None:
        self._module = module
        self.mb = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            for pid in [pid for child in live() for pid in (child.pid, *descendants(child.pid))]:
                try:
                    if self._module in Path(f"/proc/{pid}/cmdline").read_text():
                        self.mb = max(self.mb, peak_rss(pid) / 2**20)
                except OSError:
                    continue
            time.sleep(_EVERY_S)
