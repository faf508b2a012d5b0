"""Everything that kills a long run, at random moments, and the same command again until it ends.

`make chaos` runs this. CHAOS_SEED repeats a run's choices, not its timing.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign, small_disk
from tests.chaos.faults import FAULTS, START_FAULTS

MAX_CAMPAIGNS = 8
Say = Callable[[str], None]


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Say:
    """Prints at once: a long run should be watchable."""
    started = time.monotonic()

    def line(text: str) -> None:
        with capfd.disabled():
            print(f"  chaos {time.monotonic() - started:6.1f} s  {text}", flush=True)

    return line


@pytest.fixture
def rng(say: Say) -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
    say(f"seed {seed} (CHAOS_SEED={seed} makes the same choices)")
    return random.Random(seed)


def shuffled(rng: random.Random, **counts: int) -> list[str]:
    """As many faults of each kind, in random order."""
    faults = [kind.replace("_", "-") for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(faults)
    return faults


def play(campaign: Campaign, faults: list[str], rng: random.Random) -> list[str]:
    """Runs the campaign to its end, breaking it with `faults`. Returns the faults whose moment never came."""
    left = list(faults)
    while True:
        starter = next((kind for kind in left if kind in START_FAULTS), None)
        if starter and campaign.done and rng.random() < 0.5 and not any(path.parent.name == "pairs" for path in campaign.done):
            left.remove(starter)  # only while there is something to sample: memory is asked for before an engine starts
            prefix, words = START_FAULTS[starter](campaign)
            campaign.start(prefix)
            assert campaign.end() != 0
            assert words in campaign.output(), campaign.output()
            continue
        campaign.start()
        break_run(campaign, left, rng)
        if campaign.end() == 0:
            campaign.check()
            return left


def break_run(campaign: Campaign, left: list[str], rng: random.Random) -> None:
    """Lets faults happen to the run under way, and takes them off the list, until it ends or none is left."""
    deadline = time.monotonic() + 900
    while campaign.running() and any(kind in FAULTS for kind in left):
        assert time.monotonic() < deadline, f"the run hangs:\n{campaign.output()}"
        moment = time.monotonic() + rng.uniform(0.0, 5.0)
        while campaign.running() and time.monotonic() < moment:
            time.sleep(0.05)
            if "port-taken" in left and FAULTS["port-taken"](campaign, rng):  # its moment is short
                left.remove("port-taken")
        for kind in [kind for kind in left if kind in FAULTS]:  # the first whose moment has come
            if campaign.running() and FAULTS[kind](campaign, rng):
                left.remove(kind)
                break


def campaigns(folder: Path, model: Path, engine: str, faults: list[str], rng: random.Random, say: Say) -> None:
    """Campaigns until every fault has happened; each must come to its end."""
    left = faults
    for number in range(MAX_CAMPAIGNS):
        with small_disk(folder / str(number) / "home", 400):
            left = play(Campaign(folder / str(number), model, engine, rows=36, iterations=2, say=say), left, rng)
        if not left:
            say(f"{engine}: {len(faults)} faults in {number + 1} campaigns")
            return
    pytest.fail(f"never came to happen: {left}")


@pytest.mark.long
def test_long_form_with_processes(tmp_path: Path, tiny_model: Path, rng: random.Random, say: Say) -> None:
    """Answers sampled in child processes."""
    faults = shuffled(rng, shard=6, flow=5, trainer=4, scorer=2, corrupt=3, disk_full=3, memory_short=2)
    campaigns(tmp_path, tiny_model, "transformers", faults, rng, say)


@pytest.mark.long
@pytest.mark.engine
def test_long_form_with_engines(tmp_path: Path, tiny_model: Path, rng: random.Random, say: Say) -> None:
    """Answers sampled by vLLM servers."""
    faults = shuffled(rng, engine=3, vllm_child=3, flow=2, port_taken=1, memory_short=1)
    campaigns(tmp_path, tiny_model, "vllm", faults, rng, say)


@pytest.mark.long
def test_short_form(tmp_path: Path, tiny_model: Path, rng: random.Random, say: Say) -> None:
    """If this fails, a crash costs more than the work in flight: rows are lost or doubled, memory stays taken, or a run cannot go on."""
    left = shuffled(rng, shard=1, flow=1, trainer=1, corrupt=1)
    for number in range(MAX_CAMPAIGNS):
        left = play(Campaign(tmp_path / str(number), tiny_model, "transformers", rows=18, iterations=1, say=say), left, rng)
        if not left:
            return
    pytest.fail(f"never came to happen: {left}")
