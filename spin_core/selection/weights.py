"""Weights between two models, and a whole model's folder with them."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from spin_core.contracts.rows import CHOICE, EPOCHS
from spin_core.players.files import INDEX, header, read_json, weight_files
from spin_core.runtime.errors import Corrupt
from spin_core.selection.choice import START, Candidate

_LOG = "metrics.jsonl"  # of the training


def folder_of(candidate: Candidate, start: Path, trained: Path) -> Path:
    """Where the weights are that the candidate is θ_t's step towards; θ_t's own for θ_t."""
    if candidate == START:
        return start
    return trained if candidate.epoch is None else trained / EPOCHS / str(candidate.epoch)


def blend(start: Path, end: Path, gamma: float, out: Path) -> None:
    """Writes θ_t + γ(θ − θ_t) in fp32 to `out`, a weights file for each of θ's, one of them in memory at a time.

    Raises Corrupt where the two models do not have the same weights.
    """
    place = _common(start, end)
    with ExitStack() as files:
        opened = {file: files.enter_context(safe_open(file, "pt")) for file in {*place.values()}}
        for file in weight_files(end):
            with safe_open(file, "pt") as content:
                names = place.keys() & content.keys()
                found = {name: _between(opened[place[name]].get_tensor(name), content.get_tensor(name), gamma) for name in names}
                if found:
                    save_file(found, out / file.name, metadata={"format": "pt"})
            del found
    if (end / INDEX).is_file():
        index = read_json(end / INDEX)
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if name in place}
        (out / INDEX).write_text(json.dumps(index))


def _between(start: Tensor, end: Tensor, gamma: float) -> Tensor:
    return torch.lerp(start.float(), end.float(), gamma) if end.is_floating_point() else end


def _common(start: Path, end: Path) -> dict[str, Path]:
    """θ_t's file of each weight that both models have.

    Sharded training saves a head that is tied to the embedding a second time, so what only one model has may be a copy of
    another of its weights; loading ties them again. Anything else is Corrupt.
    """
    places = [{name: file for file in weight_files(folder) for name in header(file)} for folder in (start, end)]
    both = places[0].keys() & places[1].keys()
    for place in places:
        for name in sorted(place.keys() - both):
            if not any(_same(place, name, other) for other in both):
                raise Corrupt(f"{start} and {end} do not have the same weights, first {name}", remedy="remove the second and run again")
    return {name: file for name, file in places[0].items() if name in both}


def _same(place: dict[str, Path], name: str, other: str) -> bool:
    if header(place[name])[name]["shape"] != header(place[other])[other]["shape"]:
        return False
    with safe_open(place[name], "pt") as one, safe_open(place[other], "pt") as two:
        return torch.equal(one.get_tensor(name), two.get_tensor(other))


def scored_folder(job: dict[str, Any], candidate: Candidate, work: Path) -> Path:
    """A folder that a scorer can load the candidate from: where it is, or weights and config written to `work`."""
    start, end = Path(job["start"]), folder_of(candidate, Path(job["start"]), Path(job["trained"]))
    if candidate.gamma in {0.0, 1.0}:
        return end
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir(parents=True)
    blend(start, end, candidate.gamma, work)
    shutil.copyfile(Path(job["trained"]) / "config.json", work / "config.json")
    return work


def write_player(job: dict[str, Any], candidate: Candidate, out: Path) -> None:
    """The candidate as a whole model: its weights, the tokenizer and config beside them, the training's metrics."""
    start, trained = Path(job["start"]), Path(job["trained"])
    end = folder_of(candidate, start, trained)
    beside = start if candidate == START else trained
    own = {INDEX, "MANIFEST.json", CHOICE, _LOG, *(file.name for file in weight_files(beside))}
    for file in beside.iterdir():
        if file.is_file() and file.name not in own:
            shutil.copyfile(file, out / file.name)
    shutil.copyfile(trained / _LOG, out / _LOG)
    if candidate.gamma not in {0.0, 1.0}:
        blend(start, end, candidate.gamma, out)
        return
    for file in weight_files(end):
        shutil.copyfile(file, out / file.name)
    if (end / INDEX).is_file():
        shutil.copyfile(end / INDEX, out / INDEX)
