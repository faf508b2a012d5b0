"""What children inherit, and what never goes through a proxy."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from spin_core.runtime import environment, process
from spin_core.runtime.machine import Place
from spin_core.training.launch import launcher

ROOT = Path(__file__).parents[3]
JOB = """
import json, os, sys
from pathlib import Path
from spin_core.runtime.process import job_main
job_main(lambda job: Path(job["out"]).write_text(json.dumps(
    {"environ": dict(os.environ), "datasets": sys.modules["datasets"].__file__ if "datasets" in sys.modules else "",
     "spin_core": sys.modules["spin_core"].__file__, "encoding": sys.stdout.encoding, "utf8": sys.flags.utf8_mode})))
"""


def run_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str = "", **more: object) -> dict[str, object]:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "spin_test_job.py").write_text(first + JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "jobs"))
    process.run_job("spin_test_job", {"out": str(tmp_path / "found.json")}, tmp_path / "log", **more)  # type: ignore[arg-type]
    found: dict[str, object] = json.loads((tmp_path / "found.json").read_text())
    return found


@pytest.mark.parametrize("launched", [False, True], ids=["alone", "accelerate"])
def test_a_users_files_are_no_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: bool) -> None:
    """People have a datasets.py beside their data; `python -m` would import it in place of the library, in every stage."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("datasets", "tokenizers", "json", "spin_core"):
        (here / f"{name}.py").write_text("raise RuntimeError('a file of the user was imported')")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", "")
    arguments = launcher(Place(2), "ddp") if launched else []
    found = run_child(tmp_path, monkeypatch, "import datasets, tokenizers\n", launcher=arguments)
    assert "site-packages" in str(found["datasets"])
    assert Path(str(found["spin_core"])).parents[1] == ROOT


def test_empty_entries_of_the_search_path_are_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`PYTHONPATH=/x:$PYTHONPATH` leaves one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/x", "", str(ROOT)]))
    assert environment.of_child()["PYTHONPATH"].split(os.pathsep) == ["/x", str(ROOT)]


def test_a_lone_process_is_not_told_that_it_is_one_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left in a shell by torchrun or set by a cluster's job: training would wait for others, or divide its steps by eight."""
    left = {"WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    left |= {"NODE_RANK": "1", "GROUP_RANK": "0", "ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}
    left |= {"TORCHELASTIC_RUN_ID": "x", "PMI_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}
    for name, value in (left | {"NCCL_DEBUG": "INFO", "HF_HOME": "/h", "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    found = run_child(tmp_path, monkeypatch)["environ"]
    assert isinstance(found, dict)
    assert not set(left) & set(found)
    assert {"NCCL_DEBUG", "HF_HOME", "OMP_NUM_THREADS"} <= set(found)


def test_a_launcher_tells_its_children_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    found = run_child(tmp_path, monkeypatch, launcher=launcher(Place(2), "ddp"))["environ"]
    assert isinstance(found, dict)
    assert (found["WORLD_SIZE"], found["ACCELERATE_MIXED_PRECISION"]) == ("2", "no")


def test_children_speak_utf8_in_every_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(name, value)
    found = run_child(tmp_path, monkeypatch, "print('θ → λ')\n")
    assert (found["encoding"], found["utf8"]) == ("utf-8", 1)
    assert "θ → λ" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.fixture
def server() -> Iterator[str]:
    """Answers anything on loopback."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@pytest.mark.parametrize("listed", [{}, {"NO_PROXY": "intern.example"}, {"no_proxy": "intern.example, .corp"}, {"NO_PROXY": "*"}])
def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch, server: str, listed: dict[str, str]) -> None:
    """The proxy cannot reach our own server, and its client would ask it for minutes."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    for name, value in listed.items():
        monkeypatch.setenv(name, value)
    if "*" not in listed.values():
        with pytest.raises(httpx.TransportError):
            httpx.get(server)
    environment.keep_loopback_direct()
    environment.keep_loopback_direct()  # a session after the command line
    assert httpx.get(server).status_code == 200
    assert httpx.get(server.replace("127.0.0.1", "localhost")).status_code == 200
    wanted = (
        "*" if "*" in listed.values() else ",".join([*(v for text in listed.values() for v in text.split(", ")), "127.0.0.1,localhost,::1"])
    )
    assert os.environ["NO_PROXY"] == wanted


def test_elsewhere_is_still_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    environment.keep_loopback_direct()
    code = "from urllib.request import getproxies, proxy_bypass; print(proxy_bypass('huggingface.co'), getproxies()['http'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment.of_child())
    assert done.stdout.split()[0] in {"0", "False"}, done.stderr
