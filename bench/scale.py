"""A million pairs from gather to the trainer's first batch: seconds and the peak memory of the flow and of each child.

Every pair has 200 + 200 + 200 tokens. Gather joins 1,000-row shards; scoring takes a model that answers 0 at once, so what is
measured is reading, cutting, writing and joining; then comes what a training process does before its first step: mapping the
rows, planning two epochs for eight devices, and the first batch. The aims: flow ≤ 500 MB, each child ≤ 2 GB, plan ≤ 60 s.

    python -m bench.scale                    # a million pairs, about ten minutes on two cores and 25 GB of disk
    python -m bench.scale --rows 100000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.facts import facts
from bench.peak import ChildPeak
from spin_core.pairs.stage import Gather
from spin_core.recipe import TrainingSettings
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.process import peak_rss
from spin_core.scoring.stage import Score
from spin_core.store import Ref, Store

_TOKENS = ((200, 200),) * 3
_CHILDREN = "bench.scale_children"


class _Machine(Launcher):
    """Scores with the bench's scorer."""

    def spread(self, module: str, job: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """See `Launcher`."""
        super().spread(_CHILDREN, job, *args, **kwargs)


def _make(home: Path, rows: int) -> None:
    """What the flow finds, made in a process of its own."""
    from bench.gather import make

    model, prompts, encoded, train, test = make(Store(home), rows, _TOKENS)
    single = {"model": model, "prompts": prompts, "encoded": encoded}
    found = {name: [ref.digest] for name, ref in single.items()} | {"train": [r.digest for r in train], "test": [r.digest for r in test]}
    (home / "made.json").write_text(json.dumps(found))


def _made(store: Store) -> dict[str, tuple[Ref, ...]]:
    kinds = {"train": "shard", "test": "shard"}
    found = json.loads((store.home / "made.json").read_text())
    return {name: tuple(store.find(kinds.get(name, name), digest) for digest in digests) for name, digests in found.items()}


def measure(home: Path, rows: int) -> dict[str, float]:
    """Seconds and peaks (MB) of each stage."""
    store = Store(home)
    on, made, found = _Machine(store), _made(store), {}
    peak, begun = ChildPeak("spin_core.pairs.job"), time.perf_counter()
    pairs = on.build(Gather(0, *made["prompts"], *made["encoded"], made["train"], made["test"]))
    found |= {"gather_s": time.perf_counter() - begun, "gather_mb": peak.mb}
    peak, begun = ChildPeak(_CHILDREN), time.perf_counter()
    settings = TrainingSettings(precision="fp32")
    reference = on.build(Score(settings, *made["model"], pairs))
    found |= {"score_s": time.perf_counter() - begun, "score_mb": peak.mb, "pairs_per_s": reference.facts["pairs_per_s"]}
    begun, out = time.perf_counter(), home / "first.json"
    job = {"pairs": str(pairs.path), "reference": str(reference.path), "work": str(home), "out": str(out)}
    on.job(_CHILDREN, job, "first", "first batch")
    first = json.loads(out.read_text())
    found |= {"first_batch_s": time.perf_counter() - begun, "first_batch_mb": first["peak_mb"]}
    found |= {name: first[name] for name in ("rows_s", "plan_s", "batch_s", "steps")}
    assert pairs.facts["pairs"] == rows
    return found | {"flow_mb": peak_rss() / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        _make(options.make, options.rows)
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "bench.scale", "--make", folder, "--rows", str(options.rows)], check=True)
        print(f"{options.rows:,} pairs made in {time.perf_counter() - begun:.0f} s", flush=True)
        found = {name: round(value, 1) for name, value in measure(Path(folder), options.rows).items()}
    for name, value in found.items():
        print(f"{name:>15} {value:>12,}")
    print(json.dumps({**facts("scale", "pyarrow", "datasets", "torch"), "rows": options.rows, **found}))


if __name__ == "__main__":
    main()
