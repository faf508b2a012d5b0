"""Environment variables: what a child gets, and what keeps loopback away from a proxy."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Mapping, MutableMapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# what accelerate, torchrun and MPI tell the processes that they launch; left in a shell or set by a cluster's job, it would have
# a lone process wait for others, or train in another precision
_LAUNCHED = re.compile(
    r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|NNODES"
    r"|(ACCELERATE|FSDP|PARALLELISM_CONFIG|TORCHELASTIC|PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_\w+"
)


def of_child(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child of it, with `changes`.

    Only its launcher tells a child that it is one of many. No file in the working directory is imported in place of a library;
    spin_core is found all the same where it runs from a checkout. The child speaks UTF-8 in every locale.
    """
    kept = {name: value for name, value in os.environ.items() if not _LAUNCHED.fullmatch(name)}
    kept |= {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    kept["SPT_NOENV"] = "1"  # setproctitle, with which vLLM names its processes, else writes over the environment and our mark
    kept["DO_NOT_TRACK"] = "1"  # libraries that report their use, as TRL's trainers do, would wait for a hub that may not be there
    kept |= changes or {}
    kept["PYTHONPATH"] = os.pathsep.join(_search_path(kept.get("PYTHONPATH", "")))
    if not kept["PYTHONPATH"]:
        del kept["PYTHONPATH"]
    return kept


def _search_path(given: str) -> list[str]:
    """PYTHONPATH without empty entries, which mean the working directory, and with the checkout where that is where we come from."""
    entries = [entry for entry in given.split(os.pathsep) if entry]
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return entries if _ROOT in installed or str(_ROOT) in entries else [*entries, str(_ROOT)]


def keep_loopback_direct(environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds this machine's own addresses to NO_PROXY: no proxy can reach the server that a run starts here."""
    listed = [entry.strip() for name in ("NO_PROXY", "no_proxy") for entry in environment.get(name, "").split(",") if entry.strip()]
    wanted = ",".join(dict.fromkeys([*listed, *_LOOPBACK]))
    if "*" not in listed:
        environment["NO_PROXY"] = environment["no_proxy"] = wanted
