"""Does self-play keep what it wins, and is it worth more than SFT? All arms of `settings`, small, on this machine's cores.

    python -m bench.proof --work FOLDER            # runs, or goes on, in two processes; about three hours; then writes
    python -m bench.proof --work FOLDER --write    # bench/results/proof-DATE.json, docs/proof.md and its pictures, of what is there

Everything that is chosen is chosen on validation rows, everything that is written is measured on held-out rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.facts import commit, versions
from bench.proof.settings import Sizes
from spin_core.runtime.devices import environment
from spin_core.store.files import replace_text


def _begin(folder: Path, sizes: Sizes) -> None:
    """Notes what the folder is of; refuses one of other sizes."""
    file = folder / "run.json"
    if file.exists():
        if json.loads(file.read_text())["sizes"] != vars(sizes):
            raise SystemExit(f"{folder} holds a run of other sizes: give another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "versions": versions("torch", "transformers"), "sizes": vars(sizes)}
    replace_text(file, json.dumps(facts))


def _work(folder: Path, workers: int, sizes: Sizes) -> None:
    """Two processes, a thread each: at this size a second thread wins little."""
    env = os.environ | environment([]) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.proof", "--work", str(folder), "--worker", *(["--small"] if sizes == Sizes.small() else [])]
    children = [subprocess.Popen(command, env=env) for _ in range(workers)]
    try:
        failed = [child for child in children if child.wait()]
    finally:
        for child in children:
            child.terminate()
    if failed:
        raise SystemExit("a worker failed: see above; run the same command again to go on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the run's own files; a run goes on from what is there")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--write", action="store_true", help="run nothing")
    parser.add_argument("--small", action="store_true", help="sizes that mean nothing, to see that it runs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = Sizes.small() if options.small else Sizes()
    if options.worker:
        import torch

        from bench.proof.work import Work

        torch.set_num_threads(1)
        return Work(options.work, sizes).run()
    _begin(options.work, sizes)
    if not options.write:
        _work(options.work, options.workers, sizes)
    from bench.proof.write import write

    root = Path(__file__).parents[2]
    print(json.dumps(write(options.work, options.work if options.small else root)))


if __name__ == "__main__":
    main()
