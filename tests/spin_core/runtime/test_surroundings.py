"""What of the machine is looked at before a run."""

import errno
import os
from pathlib import Path

import pytest

from spin_core.runtime import surroundings
from spin_core.runtime.errors import BadInput


def test_a_home_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run as root, who may write everywhere, so the system's answer is changed."""
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "home")
    with pytest.raises(BadInput, match=r"home \S+/home: \S+/home cannot be written; choose another with --home or SPINFLOW_HOME"):
        surroundings.require_writable(tmp_path / "home")


def test_looking_makes_nothing(tmp_path: Path) -> None:
    surroundings.require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "/x: Permission denied; check its owner"),
        (errno.EROFS, "/x: Read-only file system; choose"),
        (errno.ENOSPC, "free some space"),
    ],
)
def test_what_the_system_refuses_is_one_line(number: int, says: str) -> None:
    told = surroundings.as_told(OSError(number, os.strerror(number), "/x"))
    assert told is not None
    assert says in str(told)


def test_our_own_faults_keep_their_traceback() -> None:
    assert surroundings.as_told(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert surroundings.as_told(OSError("no number")) is None
