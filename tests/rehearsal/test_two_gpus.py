"""Two iterations with two GPUs; `test_kills` has the kills."""

from pathlib import Path

import pytest

from tests.rehearsal.campaign import Rehearsal, check_end


def test_a_campaign_with_two_gpus(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines, two scorers, one training of two processes over both, and every GPU free again for the next stage."""
    rehearsal = Rehearsal(tmp_path, tiny_model, 2)
    rehearsal.play([])
    check_end(rehearsal, monkeypatch)
    assert rehearsal.places("generation") == {("80", ""), ("81", "")}
    assert rehearsal.places("training") == {("80,81", "0"), ("80,81", "1")}
    assert rehearsal.places("scoring") == {("80", ""), ("81", "")}
