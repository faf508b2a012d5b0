"""What a command needs of the machine that it starts on: the system, the locale, the home. Each fault is one line."""

from __future__ import annotations

import errno
import locale
import os
import sys
from pathlib import Path

from spin_core.runtime import environment
from spin_core.runtime.errors import BadInput, SpinflowError

_ELSEWHERE = "choose another with --home or SPINFLOW_HOME"
_OF_THE_MACHINE = {
    errno.EACCES: "check its owner and permissions",
    errno.EPERM: "check its owner and permissions",
    errno.EROFS: "choose a place that can be written",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space and run again",
    errno.ENAMETOOLONG: "choose a shorter path",
}


def prepare() -> None:
    """Called first by every command. Raises SpinflowError in one line where the system cannot do."""
    speak()
    if sys.argv[1:] and "--help" not in sys.argv:  # which may be read anywhere
        require_linux()
    environment.keep_loopback_direct()


def require_linux() -> None:
    """Children that end with their parent, locks that last as long as a process, /proc: only Linux has all of them."""
    if sys.platform != "linux":
        name = {"darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
        remedy = "use WSL2" if sys.platform == "win32" else "use a Linux machine"
        raise SpinflowError(
            f"spinflow runs on Linux, and this is {name}", remedy=f"{remedy}, or a container from deployments/Dockerfile.cpu"
        )


def speak() -> None:
    """Has every locale do: files are read and written as UTF-8, and what the terminal cannot show becomes a question mark."""
    if "utf" not in locale.getpreferredencoding(False).lower() and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # read when Python starts, so it starts anew, once
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test's stream need not have it
        if reconfigure:
            reconfigure(errors="replace")


def expanded(home: Path) -> Path:
    """`home` with ~ replaced and without links. Raises BadInput where nobody knows what ~ is."""
    try:
        return home.expanduser().resolve()
    except RuntimeError:  # HOME is not set and the user has no entry in passwd, as in many containers
        raise BadInput(f"home {home}: HOME is not set, so ~ is no folder", remedy="give --home, or set SPINFLOW_HOME") from None
    except OSError as error:
        raise BadInput(f"home {home}: {error.strerror}", remedy=_ELSEWHERE) from None


def settle(home: Path) -> None:
    """Before a run: makes its home, which is also the user's home folder where they have none to write to. Raises BadInput."""
    require_writable(home)
    if problem := _not_made(home):
        raise BadInput(f"home {home}: {problem}", remedy=_ELSEWHERE)
    try:
        theirs = Path.home()
        cache = theirs / ".cache" / "huggingface"
        usable = not _not_made(theirs / ".prefect")
    except RuntimeError:  # see `expanded`
        cache, usable = home, False
    if not usable:  # Prefect and other libraries keep settings and caches there
        os.environ["HOME"] = str(home)
        if cache.is_dir() and cache != home:
            os.environ.setdefault("HF_HOME", str(cache))


def _not_made(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return _obstacle(folder)


def require_writable(home: Path) -> None:
    """Raises BadInput unless artifacts can be written under `home`, which need not exist yet; makes nothing."""
    for place in (home, *(home / name for name in ("artifacts", "logs", "campaigns", "work"))):
        if problem := _obstacle(place):
            raise BadInput(f"home {home}: {problem}", remedy=_ELSEWHERE)


def _obstacle(place: Path) -> str:
    """Why a folder cannot be made or written there; empty where it can."""
    try:
        there = next(path for path in (place, *place.parents) if path.exists() or path.is_symlink())
        if not there.is_dir():
            return f"{there} is no folder"
    except OSError as error:
        return f"{place}: {error.strerror}"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written"


def as_told(error: OSError) -> SpinflowError | None:
    """What a person can mend about an error of the system, as one line; None where it may be a fault of ours."""
    remedy = _OF_THE_MACHINE.get(error.errno or 0)
    if not remedy:
        return None
    return SpinflowError(f"{error.filename or 'a file'}: {error.strerror}", remedy=remedy)
