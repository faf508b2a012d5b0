"""One run of a campaign at a time, with logs of its own."""

import subprocess
import sys
from pathlib import Path

from spin_core.campaign.workspace import campaign_lock, open_run_logs
from spin_core.store import Store


def test_a_campaign_is_one_runs_at_a_time(tmp_path: Path) -> None:
    """Two runs at once would train twice and race for the links; a dead run must not hold the others up."""
    store = Store(tmp_path)
    code = """
import sys, time, pathlib
from spin_core.campaign.workspace import campaign_lock
from spin_core.store import Store
with campaign_lock(Store(pathlib.Path(sys.argv[1])), "c", print):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    told: list[str] = []

    def waiting(who: str) -> None:
        told.append(who)
        holder.kill()

    with campaign_lock(store, "c", waiting), campaign_lock(store, "other", waiting):
        assert told == [f"process {holder.pid} (campaign c)", ""]
    holder.wait()


def test_each_run_has_a_log_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = open_run_logs(store, "c"), open_run_logs(store, "c")
    assert first != second
    assert store.log_path("engine").parent == second == (tmp_path / "logs" / "latest").resolve()
