"""What can happen to a campaign. A fault returns whether its moment had come; if so, it has happened."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from spin_core.runtime.process import descendants
from tests.chaos.campaign import Campaign, command_line

Fault = Callable[[Campaign, random.Random], bool]
_ENGINE = "vllm.entrypoints"


def _kill(kind: str, *words: str) -> Fault:
    def happen(campaign: Campaign, rng: random.Random) -> bool:
        found = campaign.pids(*words)
        return bool(found) and _sigkill(campaign, kind, rng.choice(found))

    return happen


def _sigkill(campaign: Campaign, kind: str, pid: int) -> bool:
    what = command_line(pid).strip()[-50:]
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    campaign.say(f"killed {kind} {pid}: …{what}")
    return True


def _flow(campaign: Campaign, rng: random.Random) -> bool:
    if not (campaign.home / "artifacts").exists():
        return False  # it has not begun
    assert campaign.run is not None
    campaign.killed = True
    return _sigkill(campaign, "flow", campaign.run.pid)


def _vllm_child(campaign: Campaign, rng: random.Random) -> bool:
    children = [pid for engine in campaign.pids(_ENGINE) for pid in descendants(engine) if _ENGINE not in command_line(pid)]
    # Python's resource tracker is a child, too, but nothing depends on it
    children = [pid for pid in children if command_line(pid) and "resource_tracker" not in command_line(pid)]
    return bool(children) and _sigkill(campaign, "vllm-child", rng.choice(children))


def _corrupt(campaign: Campaign, rng: random.Random) -> bool:
    """Flips a byte of a shard that nobody has read yet."""
    manifests = [file for kind in ("pairs", "evaluation") for file in campaign.home.glob(f"artifacts/{kind}/*/MANIFEST.json")]
    read = {parent["digest"] for file in manifests for parent in json.loads(file.read_text())["parents"]}
    fresh = [p.parent for p in campaign.home.glob("artifacts/shard/*/MANIFEST.json") if p.parent.name not in read]
    if not fresh or campaign.pids("spin_core.training.job") or campaign.pids("spin_core.scoring.job"):
        return False
    shard = rng.choice(sorted(fresh))
    content = bytearray((shard / "shard.parquet").read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    campaign.spoilt.add(shard)
    (shard / "shard.parquet").write_bytes(bytes(content))
    campaign.say(f"corrupted shard {shard.name}")
    return True


def _disk_full(campaign: Campaign, rng: random.Random) -> bool:
    """Fills the home's file system until somebody stumbles over it."""
    if not os.path.ismount(campaign.home) or not (campaign.home / "artifacts").exists():
        return False
    filler = campaign.home / "filler"
    with filler.open("wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(2**16))
        except OSError:
            campaign.say("the disk is full")
    deadline = time.monotonic() + 60
    while campaign.running() and time.monotonic() < deadline:
        time.sleep(0.1)
    filler.unlink()
    campaign.say("the disk has room again")
    return True


def _port_taken(campaign: Campaign, rng: random.Random) -> bool:
    """Listens on an engine's port before the engine does."""
    for pid in campaign.pids(_ENGINE, "--port"):
        port = int(command_line(pid).split("--port ")[1].split()[0])
        taker = socket.socket()
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taker.bind(("127.0.0.1", port))
            taker.listen()
        except OSError:
            taker.close()
            continue  # the engine was faster
        threading.Timer(60, taker.close).start()
        campaign.say(f"took port {port} of engine {pid}")
        return True
    return False


def _memory_short(campaign: Campaign) -> tuple[tuple[str, ...], str]:
    """The next run sees a machine with hardly any memory left: a mount namespace of its own, with another /proc/meminfo."""
    meminfo = campaign.folder / "meminfo"
    lines = Path("/proc/meminfo").read_text().splitlines()
    meminfo.write_text("\n".join("MemAvailable:  200000 kB" if line.startswith("MemAvailable:") else line for line in lines) + "\n")
    campaign.say("the next run starts with 200 MB of free memory")
    return ("unshare", "-m", "sh", "-c", f'mount --bind {meminfo} /proc/meminfo && exec "$@"', "sh"), "GiB of memory"


FAULTS: dict[str, Fault] = {
    "engine": _kill("engine", _ENGINE),
    "vllm-child": _vllm_child,
    "shard": _kill("shard", "generation.transformers_engine"),
    "trainer": _kill("trainer", "spin_core.training.job"),
    "scorer": _kill("scorer", "spin_core.scoring.job"),
    "flow": _flow,
    "corrupt": _corrupt,
    "disk-full": _disk_full,
    "port-taken": _port_taken,
}
# these give a command that the next run starts through, and words that it must end with
START_FAULTS: dict[str, Callable[[Campaign], tuple[tuple[str, ...], str]]] = {"memory-short": _memory_short}
