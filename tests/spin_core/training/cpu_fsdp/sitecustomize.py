"""Lets accelerate's FSDP2 run on CPU processes: it knows FSDP on accelerators only, torch knows it on gloo too.

Python imports this at its start where the folder is on PYTHONPATH, so the launched processes have it and nothing else does.
"""

import os
from typing import Any

if os.environ.get("ACCELERATE_USE_FSDP") == "true" and "LOCAL_RANK" in os.environ:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        shared = PartialState._shared_state
        if shared.get("distributed_type") == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_GPU  # of whose kinds FSDP is one
        original(self, *args, **kwargs)

    AcceleratorState.__init__ = init
