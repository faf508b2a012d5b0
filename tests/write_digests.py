"""Writes the list of digests that tests/spin_core/recipe/test_identity.py compares with: `python -m tests.write_digests`."""

import json
import os
from pathlib import Path

from tests.spin_core.recipe.test_identity import KNOWN, ROOT, digests, shipped

if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    names = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    KNOWN.write_text(json.dumps({name: digests(shipped(name), Path("/nowhere")) for name in names}, indent=1) + "\n")
