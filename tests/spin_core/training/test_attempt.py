"""Two tries at one training: the first, which everybody took for lost, must not write any more."""

from pathlib import Path

import pytest

from spin_core.runtime.errors import ChildCrash
from spin_core.training.attempt import Attempt


def test_the_newest_attempt_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a node without a network mixes its checkpoints with those of the node that took over."""
    first = Attempt(tmp_path)
    first.on_step_end(None, None, None)
    monkeypatch.setenv("RANK", "1")
    Attempt(tmp_path).on_step_end(None, None, None)  # another rank, of whatever attempt, decides nothing
    first.on_step_end(None, None, None)
    monkeypatch.setenv("RANK", "0")
    second = Attempt(tmp_path)
    with pytest.raises(ChildCrash, match="another attempt"):
        first.on_step_end(None, None, None)
    second.require()
    (tmp_path / "attempt").unlink()  # with the folder, once the model is there
    with pytest.raises(ChildCrash, match="another attempt"):
        second.require()
