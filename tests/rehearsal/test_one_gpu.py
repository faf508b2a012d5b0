"""An iteration with one GPU, its flow killed and continued; `test_kills` has a kill in every stage."""

from pathlib import Path

import pytest

from tests.rehearsal.campaign import Kill, Rehearsal, check_end


def test_an_iteration_with_one_gpu(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it hangs, a stage that needs the GPU runs inside another one that holds it."""
    rehearsal = Rehearsal(tmp_path, tiny_model, 1, iterations=1)
    rehearsal.play([Kill("scoring", "flow", models=2)])
    check_end(rehearsal, monkeypatch)
    for room in ("generation", "scoring", "training"):
        assert rehearsal.places(room) == {("80", "")}, room
