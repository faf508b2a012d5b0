"""`spinflow chat`: one question, the answers of two players side by side, as they come."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spin_core.campaign.ledger import model_of
from spin_core.encoding.ends import read_ends
from spin_core.export.export import Choice
from spin_core.runtime import devices, memory, output, process
from spin_core.runtime.errors import BadInput, ChildCrash
from spin_core.runtime.progress import Progress, listen
from spin_core.store import Store

_FP32_BYTES, _RUNTIME_BYTES = 4, 2**30
_HELP = "/reset begins anew, /quit ends"
Talk = list[dict[str, str]]
Show = Callable[[Sequence[str]], None]  # is given what every player has said so far


def chat(store: Store, players: Sequence[Choice], temperature: float, console: Console) -> None:
    """Talks until the input ends. In a terminal answers stand in columns while they come; from a file or pipe they are printed one
    below the other."""
    if temperature < 0:
        raise BadInput(f"--temperature {temperature:g} is below 0", remedy="0 takes the likeliest tokens, 1 samples from the model itself")
    first, names = players[0], [f"θ_{player.number}" for player in players]
    models = [model_of(player.turns, player.number) for player in players]
    store.verify(*models)
    job = {
        "models": [str(model.path) for model in models],
        "ends": read_ends(first.turns[0].ref("encoded").path).ids,
        "kwargs": first.recipe.model.chat_template_kwargs,
        "temperature": temperature,
        "max_new_tokens": first.recipe.generation.max_new_tokens,  # as they were trained and measured
    }
    terminal = console.is_terminal and sys.stdin.isatty()
    group = devices.visible()[:1]
    with ExitStack() as stack:
        with _waits_told(console):
            if not group:
                need = sum(memory.weight_bytes(model.path, _FP32_BYTES) for model in models) + _RUNTIME_BYTES
                memory.require_memory(need, f"talking to {' and '.join(names)}")
            held = stack.enter_context(devices.hold(group, purpose="a chat"))
        log = store.log_path(f"chat-{first.recipe.name}")
        child = stack.enter_context(_child(job, log, devices.environment(group), held.fds))
        console.print(f"{first.recipe.name}: {' and '.join(names)}; {_HELP}", highlight=False)
        talks: list[Talk] = [[] for _ in players]
        for line in _lines(console, terminal):
            if line == "/quit":
                return
            if line == "/reset":
                talks = [[] for _ in players]
                console.print("begun anew", style="dim")
            elif line.startswith("/"):
                console.print(f"{line} is not known; {_HELP}", highlight=False)
            elif line:
                talks = [[*talk, {"role": "user", "content": line}] for talk in talks]
                answers = _columns(child, talks, names, console) if terminal else _plain(child, talks, names, console)
                talks = [[*talk, {"role": "assistant", "content": text}] for talk, text in zip(talks, answers, strict=True)]


def _lines(console: Console, terminal: bool) -> Iterator[str]:
    with suppress(EOFError, KeyboardInterrupt):
        while terminal:
            yield console.input("[bold]> [/bold]").strip()
        for line in sys.stdin:
            yield line.strip()


def _plain(child: Any, talks: list[Talk], names: list[str], console: Console) -> list[str]:
    answers = child(talks, lambda texts: None)
    for name, text in zip(names, answers, strict=True):
        console.print(f"{name}: {text}", markup=False, highlight=False, soft_wrap=True)
    return list(answers)


def _columns(child: Any, talks: list[Talk], names: list[str], console: Console) -> list[str]:
    def picture(texts: Sequence[str]) -> Table:
        table = Table.grid(expand=True)
        for _ in texts:
            table.add_column(ratio=1)
        table.add_row(*(Panel(Text(text), title=name, title_align="left") for name, text in zip(names, texts, strict=True)))
        return table

    with Live(picture([""] * len(names)), console=console, refresh_per_second=8, vertical_overflow="visible") as live:
        return list(child(talks, lambda texts: live.update(picture(texts))))


@contextmanager
def _waits_told(console: Console) -> Iterator[None]:
    """Says whom it waits for, once: a campaign may hold the GPU for hours."""
    told: set[str] = set()

    def say(event: Progress) -> None:
        if event.note and event.name not in told:
            told.add(event.name)
            console.print(f"{event.name}: {event.note}", highlight=False, soft_wrap=True)

    end = listen(say)
    try:
        yield
    finally:
        end()


@contextmanager
def _child(job: dict[str, Any], log: Path, env: Mapping[str, str], fds: Sequence[int]) -> Iterator[Callable[[list[Talk], Show], list[str]]]:
    """The players in a child; what is given asks them all, and returns their answers. Raises ChildCrash where it ends by itself."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(job, file)
        file.flush()
        start = output.size(log)
        child = process.spawn([sys.executable, "-m", "spin_core.chat.job", file.name], log, env, talk=True, fds=fds)

        def read() -> dict[str, Any]:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("{"):
                    found: dict[str, Any] = json.loads(line)
                    return found
            raise ChildCrash(f"the players ended: {output.last_words(log, start)}", exit_code=child.wait(), remedy=f"see {log}")

        def ask(talks: list[Talk], show: Show) -> list[str]:
            assert child.stdin is not None
            child.stdin.write(json.dumps(talks) + "\n")
            child.stdin.flush()
            texts = [""] * len(talks)
            while "done" not in (said := read()):
                texts[said["side"]] += said["text"]
                show(texts)
            return [text.strip() for text in texts]

        try:
            read()  # ready
            yield ask
        finally:
            process.end(child, grace_s=2.0)
