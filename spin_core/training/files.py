"""What lies beside a trained model's weights, and which checkpoint a killed training goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from spin_core.contracts.rows import CHOICE


def last_whole_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that was written to its end (the trainer's state is written last); others are removed."""
    while found := get_last_checkpoint(str(work)):
        try:
            json.loads((Path(found) / "trainer_state.json").read_text())
            return str(found)
        except (OSError, ValueError):
            shutil.rmtree(found)
    return None


def complete(source: Path, out: Path) -> None:
    """Adds the tokenizer and generation files of the model that training started from; drops the trainer's pickled arguments."""
    (out / "training_args.bin").unlink(missing_ok=True)
    own = {file.name for file in out.iterdir()}  # config.json says fp32 here, whatever the source was saved in
    for file in source.iterdir():
        if (
            file.name not in own
            and file.suffix in {".json", ".jinja", ".model", ".txt"}
            and file.name not in {"MANIFEST.json", CHOICE}
            and "index.json" not in file.name
        ):
            shutil.copy(file, out / file.name)


def lines_until(log: Path, step: int) -> list[dict[str, Any]]:
    """The lines of a training's log up to a step. A kill can leave half a line at the end, which is none."""
    text = log.read_text() if log.exists() else ""
    lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [line for line in lines if line["step"] <= step]


def cut_after(log: Path, step: int) -> None:
    """Drops the lines of steps that a killed run did after its last checkpoint: they will be done again."""
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines_until(log, step)))
