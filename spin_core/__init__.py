"""spin_core: Self-Play Fine-Tuning (SPIN, arXiv 2401.01335) as a library. It never imports Prefect."""

__version__ = "0.1.0"

import sys
from types import ModuleType

if sys.platform == "win32":  # it has no fcntl: the help can be read there, and `surroundings` ends everything else before a lock is taken
    sys.modules.setdefault("fcntl", ModuleType("fcntl"))
