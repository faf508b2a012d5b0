"""The machine that a command starts on: what cannot do is one line, everything else does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = "name: t\nmodel: {name: /no/such/folder}\ndata: {name: data.jsonl}\n"
NOBODY = "import pwd\ndef nobody(uid):\n    raise KeyError(uid)\npwd.getpwuid = nobody\n"  # a container's user without an entry in passwd
BAD_ROW = "error: data.jsonl row 1: no answer"  # told inside the flow, so Prefect and its server do
DEAD_PROXY = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")

ODD_LOCALE = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def spinflow(folder: Path, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    (folder / "t.yaml").write_text(RECIPE)
    (folder / "data.jsonl").write_text('{"prompt": "θ?"}\n')
    (folder / "nobody").mkdir(exist_ok=True)
    (folder / "nobody" / "sitecustomize.py").write_text(NOBODY)
    changed = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    env = {name: value for name, value in changed.items() if value is not None}
    return subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder, env=env, timeout=600)


def check_one_line(done: subprocess.CompletedProcess[str], says: str, status: int = 2) -> None:
    assert done.returncode == status, done.stdout + done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_run_does_in_bad_surroundings(tmp_path: Path) -> None:
    """A proxy for everything, a terminal of few letters, no home folder: Prefect's client asked the proxy for 127.0.0.1 for two minutes."""
    nobody = {"HOME": None, "SPINFLOW_HOME": None, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "nobody")])}
    bad = nobody | ODD_LOCALE | DEAD_PROXY | dict.fromkeys(("NO_PROXY", "no_proxy", "PREFECT_HOME"))
    check_one_line(spinflow(tmp_path, "run", "t.yaml", "--home", "home", **bad), BAD_ROW)
    assert not (tmp_path / "~").exists()


def test_a_home_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """HOME of a container's user is often a folder of root's; Prefect and others keep their own things in it."""
    done = spinflow(tmp_path, "run", "t.yaml", "--home", "home", HOME="/etc/passwd/none", PREFECT_HOME=None)
    check_one_line(done, BAD_ROW)


def test_without_a_home_folder_one_line_says_what_to_give(tmp_path: Path) -> None:
    nobody = {"HOME": None, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "nobody")])}
    check_one_line(spinflow(tmp_path, "status", "t.yaml", **nobody), "home ~/.spinflow: HOME is not set, so ~ is no folder; give --home")


def test_any_terminal_shows_what_it_can(tmp_path: Path) -> None:
    shown = spinflow(tmp_path, "keys", "beta", **ODD_LOCALE)  # its text has λ
    assert shown.returncode == 0, shown.stderr
    assert "training.beta" in shown.stdout


@pytest.mark.parametrize("command", ["run", "iterate"])
def test_an_unusable_home_is_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    check_one_line(spinflow(tmp_path, command, "t.yaml", "--home", "file"), "file is no folder; choose another with --home")
    check_one_line(spinflow(tmp_path, command, "t.yaml", "--home", "file/below"), "file is no folder; choose another with --home")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "logs").write_text("")
    check_one_line(spinflow(tmp_path, command, "t.yaml", "--home", "home"), "logs is no folder; choose another with --home")


def test_the_official_commands_say_so_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = spinflow(tmp_path, "reformat", "--data", "data.jsonl", "--output_dir", "out", "--home", "file/below")
    check_one_line(done, "file is no folder; choose another with --home")


def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    done = spinflow(tmp_path, "reformat", "--data", "data.jsonl", "--output_dir", "out/below", "--test_size", "1", "--home", "home")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


OTHER_SYSTEM = """
import sys
import asyncio, concurrent.futures, ctypes, httpx, pyarrow.parquet, rich.console, rich.progress  # they look at the platform, too
import subprocess, typer, yaml, pydantic
import sysconfig; sysconfig.get_config_vars()
import rich.table, rich.markdown, typer.rich_utils, typer.main, multiprocessing, uuid, platform, socket, jinja2
sys.platform = {platform!r}
if sys.platform == "win32":
    UNIX = ("fcntl", "resource", "pwd", "grp", "termios")
    class Missing:
        def find_spec(name, *_):
            if name in UNIX:
                raise ImportError(name)
    for name in UNIX:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Missing)
sys.argv = ["spinflow", *{arguments!r}]
from flows.cli import main
main()
"""


@pytest.mark.parametrize(
    ("platform", "says"), [("win32", "this is Windows; use WSL2, or a container"), ("darwin", "this is macOS; use a Linux machine")]
)
def test_another_system_is_told_in_one_line(tmp_path: Path, platform: str, says: str) -> None:
    """No traceback about fcntl or prctl; the help is there to read."""
    for arguments, status in ((["run", "t.yaml"], 1), (["--help"], 0), (["run", "--help"], 0)):
        code = OTHER_SYSTEM.format(platform=platform, arguments=arguments)
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=100)
        assert done.returncode == status, done.stderr
        if status:
            check_one_line(done, says, 1)
        else:
            assert "Usage" in done.stdout
            assert done.stderr == ""
