"""How busy the machine is with other things than what is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Load:
    """What other processes take of the cores, from the creation on. `pids` are those that are measured; this process is one of them."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = [os.getpid(), *pids]
        self._since, self._others_s = time.perf_counter(), self._other_cpu_s()

    @property
    def others(self) -> float:
        """Their share of all cores, 0 to 1; what the hypervisor gave to other machines counts."""
        seconds = time.perf_counter() - self._since
        return max(0.0, (self._other_cpu_s() - self._others_s) / seconds / (os.cpu_count() or 1))

    def _other_cpu_s(self) -> float:
        user, nice, system, _, _, interrupt, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in self._pids]
        own = sum(int(field[11]) + int(field[12]) for field in fields)
        return (user + nice + system + interrupt + soft + steal - own) / _TICKS_PER_S
