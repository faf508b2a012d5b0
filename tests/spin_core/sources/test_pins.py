"""Hub revisions are resolved once a campaign, and exactly those commits are read: against a server that speaks the hub's HTTP."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spin_core.campaign.ledger import Ledger
from spin_core.recipe import Recipe
from spin_core.sources.pins import is_commit, on_hub
from spin_core.store import Store
from tests.hub import Hub

ROOT = Path(__file__).parents[3]
BUILD = """
import json, sys
from pathlib import Path
from spin_core.campaign.ledger import Ledger
from spin_core.campaign.turn import TurnStages
from spin_core.recipe import Recipe
from spin_core.runtime.errors import SpinflowError
from spin_core.runtime.launcher import Launcher
from spin_core.store import Store
store = Store(Path(sys.argv[1]))
recipe = Recipe.model_validate(json.loads(sys.argv[2]))
try:
    pinned = Ledger(store, recipe.name).pinned(recipe)
    turn, on = TurnStages.of(pinned, 0, store.home), Launcher(store)
    print(json.dumps([*(on.build(stage).digest for stage in (turn.start(), turn.prompts())), pinned.start_pairs.revision]))
except SpinflowError as error:
    print(f"error: {error}")
"""


def rows(count: int) -> bytes:
    talks = [[{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": str(i)}] for i in range(count)]
    return "".join(json.dumps({"messages": talk}) + "\n" for talk in talks).encode()


def build(folder: Path, hub: Hub, campaign: str = "c", model: str = "org/tiny") -> str:
    """The model and the prompts of a campaign, in a process of their own, as a worker has; returns its last line."""
    recipe = {
        "name": campaign,
        "model": {"name": model},
        "data": {"name": "org/rows", "test_size": 2},
        "start_pairs": {"name": "org/pairs"},
    }
    # a cache a call: what is there already would hide a download of another commit
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / f"cache-{len(hub.asked)}"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUILD, str(folder / "home"), json.dumps(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    return (done.stdout.strip().splitlines() or [done.stderr])[-1]


def test_a_campaign_reads_the_commits_that_it_began_with(tmp_path: Path, tiny_model: Path) -> None:
    """A README commit on the branch must not replay a campaign, and without a network a campaign goes on."""
    hub = Hub()
    model = hub.add("models", "org/tiny", {file.name: file.read_bytes() for file in tiny_model.iterdir() if file.is_file()})
    data = hub.add("datasets", "org/rows", {"train.jsonl": rows(10)})
    pairs = hub.add("datasets", "org/pairs", {"train.jsonl": b"{}"})
    hub.add("models", "org/secret", {}, private=True)
    pins = {kind: repository.branches["main"] for kind, repository in (("models", model), ("datasets", data))}
    with hub.serving():
        first = build(tmp_path, hub)
        assert first.startswith("["), first
        read = {match[1] for line in hub.asked if (match := re.search(r"/resolve/([^/]+)/", line))}
        assert read <= set(pins.values()), "another revision than the pinned one was downloaded"
        assert read == set(pins.values())
        model.commit({"README.md": b"better words"})
        data.commit({"README.md": b"better words", "train.jsonl": rows(12)})
        assert json.loads(first)[2] == pairs.branches["main"]
        pairs.commit({"README.md": b"better words"})
        asked = len(hub.asked)
        assert build(tmp_path, hub) == first
        assert hub.asked[asked:] == [], "a campaign that is pinned asked the hub"
        other = build(tmp_path, hub, campaign="later")
        assert other.startswith("[")
        assert json.loads(other)[1] != json.loads(first)[1]  # a new campaign begins with what is there now
        refused = build(tmp_path, hub, campaign="secret", model="org/secret")
        assert refused.startswith("error: model.name: the hub does not show org/secret to you (401); set HF_TOKEN"), refused
    assert build(tmp_path, hub) == first, "without a network a campaign must go on"
    gone = build(tmp_path, hub, campaign="never-begun")
    assert gone.startswith("error: model.name: org/tiny is no path here, and the hub cannot be reached"), gone


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", True),
        ("gpt2", True),
        ("demo", False),
        ("./x", False),
        ("/abs", False),
        ("~/x", False),
        ("pypi:a==1/b", False),
        ("a/b/c", False),
    ],
)
def test_what_is_a_hub_id(name: str, expected: bool) -> None:
    assert on_hub(name) is expected


def test_a_commit_is_forty_hex_digits() -> None:
    assert is_commit("a" * 40)
    assert not any(map(is_commit, (None, "main", "a" * 39, "A" * 40)))


def test_a_cluster_is_asked_for_its_precision_once(tmp_path: Path) -> None:
    """A head without a GPU would name other artifacts than the nodes, and a lost cluster would hide what it has made."""
    recipe = Recipe.model_validate({"name": "c", "model": {"name": str(tmp_path)}, "data": {"name": "demo"}})
    ledger = Ledger(Store(tmp_path), "c")
    assert ledger.pinned(recipe).training.precision == "auto"
    asked: list[int] = []
    for _ in range(2):
        assert ledger.pinned(recipe, precision=lambda: asked.append(1) or "bf16").training.precision == "bf16"
    assert ledger.pinned(recipe).training.precision == "bf16"
    assert asked == [1]
    fixed = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": "fp32"})})
    assert ledger.pinned(fixed).training.precision == "fp32"
