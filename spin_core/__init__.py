"""spin_core: Self-Play Fine-Tuning (SPIN, arXiv 2401.01335) as a library. It never imports Prefect."""

__version__ = "0.1.0"

import sys
from types import ModuleType

if sys.platform == "win32":  # the help can be read there; `surroundings` ends everything else before one of these is used
    for _name in ("fcntl", "resource"):
        sys.modules.setdefault(_name, ModuleType(_name))
