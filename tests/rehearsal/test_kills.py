"""A kill in every stage."""

from pathlib import Path

import pytest

from tests.rehearsal.campaign import Kill, Rehearsal, check_end

# every child of an iteration, in the order in which it is first seen
STAGES = [("sources", 0), ("players", 0), ("encoding", 0), ("generation", 0), ("pairs", 0), ("scoring", 0), ("training", 0)]
STAGES += [("scoring", 2), ("generation", 2)]  # of the new model


@pytest.mark.long
@pytest.mark.parametrize("who", ["flow", "child"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_campaign_that_is_killed_in_every_stage(
    count: int, who: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a crash in some stage costs what was finished, or leaves a GPU taken."""
    rehearsal = Rehearsal(tmp_path, tiny_model, count, iterations=1)
    rehearsal.play([Kill(room, who, models) for room, models in STAGES])
    check_end(rehearsal, monkeypatch)
