"""A campaign whose second iteration is made bad on purpose, on chat data without checks: it is caught, not kept, and marked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = """
name: tiny
model: {{name: {model}}}
data: {{name: chat.jsonl, test_size: 16, validation_size: 16, max_prompt_tokens: 128}}
generation: {{engine: transformers, max_new_tokens: 16, shard_rows: 64}}
training: {{epochs: 1, pairs_per_step: 6, learning_rate: 1.0e-3, line_search: []}}
evaluation: {{samples: 2, greedy: false, custom: ["mine.py:short"]}}
iterations: [{{}}, {{learning_rate: 0.05}}, {{}}]
"""
MINE = "def short(prompt, answer, real):\n    return len(answer) <= 4 * len(real)\n"


@pytest.mark.long
def test_a_worse_iteration_is_not_gone_on_with(tmp_path: Path, tiny_model: Path) -> None:
    """If it fails, one bad learning rate costs a campaign everything that it had won."""
    talks = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n} it is"}] for n in range(64)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    (tmp_path / "tiny.yaml").write_text(RECIPE.format(model=tiny_model))
    (tmp_path / "mine.py").write_text(MINE)
    command = [sys.executable, "-m", "flows.cli", "run", "tiny.yaml", "--home", "home"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "home" / "campaigns" / "tiny"
    turns = json.loads((folder / "campaign.json").read_text())["turns"]
    assert [turn["opponent"] for turn in turns] == [0, 1, 1]
    assert "θ_2 is worse than its opponent; this turn starts from θ_1" in done.stdout
    assert "θ_2 ✗" in done.stdout
    assert "θ_3 is best: NLL" in done.stdout
    assert (folder / "best").resolve() == (folder / "iter-2" / "model").resolve()
    assert "short" in turns[2]["metrics"]["figures"]
    assert "worse, and not gone on with" in (folder / "report.html").read_text()
