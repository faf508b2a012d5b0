"""Hosts on this machine: network namespaces on a bridge, each with an address and a disk of its own, and a Ray node. Needs root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.spin_core.cluster.nodes import ROOT, paths, wait_until

_NET = "10.213.7"
_PORT = 6379


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@dataclass
class Host:
    """One of them; number 0 is the head, and where the flow runs."""

    number: int
    disk: Path  # where what it has lies; no host sees the others'
    inside: Path  # what it calls that: the same on all
    environment: dict[str, str]
    started: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"spin{self.number}"

    @property
    def address(self) -> str:
        return f"{_NET}.{self.number + 10}"

    def command(self, *words: str) -> list[str]:
        """Runs on this host, which sees its own disk and processes and no others."""
        short = "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray"  # Ray's sockets' names have to be
        disk = f"mount --bind {self.disk} {self.inside} && mount -t tmpfs tmpfs {self.disk.parent}"
        script = f'hostname {self.name} && {short} && {disk} && exec "$@"'
        apart = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return ["ip", "netns", "exec", self.name, *apart, "bash", "-c", script, "host", *words]

    def beside(self) -> tuple[str, ...]:
        """What comes before a command that runs beside its Ray node."""
        pid = self.started[-1].pid  # what is forked there is the host's first process
        first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        there = ("nsenter", f"--target={first}", "--mount", "--uts", "--pid", "--net")
        return (*there, "bash", "-c", f'cd {self.inside.parent} && exec "$@"', "host")

    def join(self) -> None:
        """Starts its Ray node, as its machine's service manager would after a boot."""
        ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block", "--disable-usage-stats"]
        place = [f"--node-ip-address={self.address}", "--num-cpus=1", f"--num-gpus={min(self.number, 1)}"]
        role = [f"--port={_PORT}", "--head", "--include-dashboard=false"] if not self.number else [f"--address={_NET}.10:{_PORT}"]
        env = {**os.environ, **self.environment, "PYTHONPATH": paths(ROOT, self.environment.get("PYTHONPATH"))}
        with (self.inside.parent / f"{self.name}.log").open("ab") as log:
            self.started.append(
                subprocess.Popen(self.command(*ray, *place, *role), stdout=log, stderr=log, env=env, start_new_session=True)
            )

    def cut(self, seconds: float) -> None:
        """The cable is pulled; a Ray node that was given up meanwhile ends itself, and is started again."""
        ip("link", "set", f"v{self.name}", "down")
        time.sleep(seconds)
        ip("link", "set", f"v{self.name}", "up")
        for _ in range(60):
            if self.started[-1].poll() is not None:
                self.end()
                self.join()
                return
            time.sleep(1)

    def end(self) -> None:
        """Ends everything that runs in it."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        for pid in map(int, pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for child in self.started:
            child.kill()
            child.wait()


@contextmanager
def hosts(folder: Path, count: int, environment: dict[str, str]) -> Iterator[list[Host]]:
    """A head without GPUs and so many hosts with one each. Skips where a machine does not allow it."""
    pytest.importorskip("ray", reason="Ray is not installed")
    found = [Host(number, folder / "disks" / str(number), folder / "disk", environment) for number in range(count + 1)]
    try:
        try:
            ip("link", "add", "spinbr", "type", "bridge")
        except OSError as error:
            pytest.skip(f"no networks can be made here: {error}")
        ip("addr", "add", f"{_NET}.1/24", "dev", "spinbr")
        ip("link", "set", "spinbr", "up")
        (folder / "disk").mkdir()
        for host in found:
            host.disk.mkdir(parents=True)
            ip("netns", "add", host.name)
            ip("link", "add", f"v{host.name}", "type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("link", "set", f"v{host.name}", "master", "spinbr", "up")
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.name, "link", "set", "eth0", "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        found[0].join()
        wait_until(lambda: _answers(found[0]), 240)
        for host in found[1:]:
            host.join()
        yield found
    finally:
        for host in found:
            host.end()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
        subprocess.run(["ip", "link", "del", "spinbr"], capture_output=True)


def gateway() -> str:
    """This machine's address for all hosts."""
    return f"{_NET}.1"


def _answers(head: Host) -> bool:
    code = f"import socket; socket.create_connection(('{head.address}', {_PORT}), 1)"
    return not subprocess.run(["ip", "netns", "exec", head.name, sys.executable, "-c", code], capture_output=True).returncode
