"""Two players answer the same question, each in its own conversation."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spin_core.campaign.ledger import Ledger
from spin_core.chat.chat import Show, Talk, _columns
from spin_core.runtime import devices, memory
from spin_core.store import Store
from tests.played import play, recipe_of
from tests.rehearsal.machine import make_machine
from tests.terminal import Done, jobs_here, spinflow


@pytest.fixture(scope="module")
def store(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("played"))
    with jobs_here():
        play(store, recipe_of(tiny_model))
    return store


def said(store: Store, lines: list[str], *arguments: str) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return spinflow("chat", "tiny", *arguments, "--home", str(store.home))


def answer(folder: Path, *questions: str) -> str:
    """The most likely answer to the last question, by plain transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    talk: list[dict[str, str]] = []
    text = ""
    for question in questions:
        talk.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        talk.append({"role": "assistant", "content": text})
    return text


def test_both_answer_and_remember(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU, which the chat holds as long as it goes on (and torch does not see)."""
    monkeypatch.setenv("PATH", make_machine(tmp_path / "bin", 1)["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "LOCKS", tmp_path / "locks")
    done = said(store, ["Hi", "And now?", "/reset", "Hi", "/what", "", "/quit", "never asked"], "--temperature", "0")
    assert done.status == 0, done.error
    turn = Ledger(store, "tiny").turns()[0]
    for name, ref in (("θ_0", turn.ref("start")), ("θ_1", turn.ref("model"))):
        first, second = answer(ref.path, "Hi"), answer(ref.path, "Hi", "And now?")
        parts = [part.split("\nθ_")[0] for part in done.out.split(f"{name}: ")[1:]]
        assert [part.split("\nbegun")[0].split("\n/what")[0].strip() for part in parts] == [first, second, first]
    assert "tiny: θ_0 and θ_1; /reset begins anew, /quit ends" in done.out
    assert "/what is not known" in done.out
    assert len(list((tmp_path / "locks").iterdir())) == 1
    with devices.hold(devices.visible(), lambda: True):
        pass  # it was given back


def test_whom_it_waits_for_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    monkeypatch.setattr(memory.require_memory, "__defaults__", (devices.never, 0.1))
    done = said(store, ["Hi"])
    assert "waiting for memory: 0.0 of 1.0 GiB are free" in done.out
    assert (done.status, done.error.count("\n")) == (1, 1)
    assert "talking to θ_0 and θ_1 needs about 1.0 GiB of memory" in done.error


def test_mistakes_are_one_line(store: Store) -> None:
    for arguments, says in (
        (("--against", "7"), "campaign tiny has θ_0 … θ_1, not θ_7; give best, or 0 … 1"),
        (("--temperature", "-1"), "--temperature -1 is below 0"),
    ):
        done = said(store, [], *arguments)
        assert (done.status, done.error.count("\n")) == (2, 1)
        assert says in done.error


def test_in_a_terminal_answers_stand_side_by_side() -> None:
    def child(talks: list[Talk], show: Show) -> list[str]:
        show(["Twelve", ""])
        show(["Twelve.", "12"])
        return ["Twelve.", "12"]

    out = io.StringIO()
    assert _columns(child, [[], []], ["θ_0", "θ_2"], Console(file=out, force_terminal=True, width=60)) == ["Twelve.", "12"]
    last = out.getvalue().splitlines()
    assert any("θ_0" in line and "θ_2" in line for line in last)
    assert any("Twelve." in line and "12" in line.partition("Twelve.")[2] for line in last)


def test_a_damaged_player_is_one_line(store: Store) -> None:
    """The last test here: what is damaged is set aside."""
    config = Ledger(store, "tiny").turns()[0].ref("model").path / "config.json"
    config.write_text(config.read_text() + " ")
    done = said(store, ["Hi"])
    assert done.status == 1
    assert "config.json has" in done.error
    assert done.error.count("\n") == 1
