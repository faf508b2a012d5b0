"""Reformat of a large JSON-lines file: rows/s and the resident memory of the process that does it.

python -m bench.reformat --rows 1000000    # a file of about 2 GB in a temporary folder
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.facts import facts
from bench.peak import ChildPeak
from spin_core.recipe import DataSettings
from spin_core.store import Store
from tests.stages import reformat

_TEXT = "".join(np.random.default_rng(0).choice(list("etaoin shrdlu cmfwyp"), 1 << 20))


def write_rows(path: Path, rows: int) -> int:
    """Two-turn conversations of about 2 KB; one row in a hundred is a copy or has no answer. Returns the file's bytes."""
    rng = np.random.default_rng(1)
    with path.open("w") as handle:
        line = ""
        for number in range(rows):
            if number % 200 != 1:  # else the line before once more
                start, sizes = int(rng.integers(0, 1 << 19)), rng.geometric(1 / 450, 4).clip(8, 8000)
                texts = [_TEXT[start + i * 8000 : start + i * 8000 + size] for i, size in enumerate(sizes)]
                if number % 200 == 2:
                    texts[3] = " "
                turns = [
                    {"role": ("user", "assistant")[i % 2], "content": f"{number} {text}" if i < 3 else text} for i, text in enumerate(texts)
                ]
                line = json.dumps({"prompt_id": number, "messages": turns}) + "\n"
            handle.write(line)
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-reformat-") as folder:
        file = Path(folder) / "data.jsonl"
        size = write_rows(file, options.rows)
        peak = ChildPeak("spin_core.sources")
        started = time.perf_counter()
        prompts = reformat(Store(Path(folder) / "home"), DataSettings(name=str(file), on_bad_row="skip", test_size=1000))
        seconds = time.perf_counter() - started
        found = prompts.facts
    assert found["train"] + found["test"] + found["rejected"] == options.rows
    result = {
        **facts("reformat", "pyarrow"),
        "rows": options.rows,
        "input_bytes": size,
        "rejected": found["rejected"],
        "seconds": round(seconds, 1),
        "rows_per_s": round(options.rows / seconds),
        "max_rss_mb": round(peak.mb),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
