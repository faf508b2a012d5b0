"""What a command needs of the machine that it starts on: the system, the locale, the home. Each fault is one line."""

from __future__ import annotations

import errno
import locale
import os
import sys
from pathlib import Path

from spin_core.runtime import environment
from spin_core.runtime.errors import BadInput, SpinflowError

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
    require_linux()
    environment.keep_loopback_direct()


def require_linux() -> None:
    """Children that end with their parent, locks that last as long as a process, /proc: only Linux has all of them."""
    if sys.platform != "linux":
        name = {"darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
        remedy = "use WSL2" if sys.platform == "win32" else "use a Linux machine"
        raise SpinflowError(f"spinflow runs on Linux, and this is {name}", remedy=f"{remedy}, or a container from deployments/Dockerfile.cpu")


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
        raise BadInput(f"home {home}: {error.strerror}", remedy="choose another with --home or SPINFLOW_HOME") from None


def require_writable(home: Path) -> None:
    """Raises BadInput unless artifacts can be written under `home`, which need not exist yet; makes nothing."""
    remedy = "choose another with --home or SPINFLOW_HOME"
    places = (home, home / "artifacts", home / "logs", home / "campaigns", home / "work")
    for place in places:
        try:
            there = next(path for path in (place, *place.parents) if path.exists() or path.is_symlink())
            folder = there.is_dir()
        except OSError as error:
            raise BadInput(f"home {home}: {error.strerror}", remedy=remedy) from None
        if not folder:
            raise BadInput(f"home {home}: {there} is no folder", remedy=remedy)
        if not os.access(there, os.W_OK | os.X_OK):
            raise BadInput(f"home {home}: {there} cannot be written", remedy=remedy)


def as_told(error: OSError) -> SpinflowError | None:
    """What a person can mend about an error of the system, as one line; None where it may be a fault of ours."""
    remedy = _OF_THE_MACHINE.get(error.errno or 0)
    if not remedy:
        return None
    return SpinflowError(f"{error.filename or 'a file'}: {error.strerror}", remedy=remedy)
