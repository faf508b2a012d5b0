"""The stage `judged` by lm-evaluation-harness: benchmarks of one player, asked of the running engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spin_core.generation.engine import Sampler
from spin_core.recipe import GenerationSettings, HarnessSettings
from spin_core.recipe.identity import identity
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec
from spin_core.store.files import content_digest

STAGE_VERSION = 1
_V1 = {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc2": 0, "winogrande": 5, "gsm8k": 5}  # arXiv 2401.01335, 6.1
PRESETS: dict[str, dict[str, int | None]] = {"open-llm-leaderboard-v1": {**_V1}, "open-llm-leaderboard-v2": {"leaderboard": None}}


@dataclass(frozen=True)
class Harness:
    """Writes what `Judge` writes, a figure a task, the same for every split; and results.json as the harness has them."""

    settings: HarnessSettings
    generation: GenerationSettings  # which engine
    player: int  # t of θ_t
    model: Ref
    splits: Sequence[str]
    turn: str = ""  # for people
    name: str = "harness"

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"{self.turn} · judge θ_{self.player} by lm-evaluation-harness"

    @property
    def tasks(self) -> dict[str, int | None]:
        """Each with its shots; the recipe's own come after the preset's."""
        return {**(PRESETS[self.settings.preset] if self.settings.preset else {}), **self.settings.tasks}

    def spec(self) -> Spec:
        """The tasks, with the content of the recipe's own files, and the model."""
        keys = identity(self.settings, without={"preset", "tasks", "include_path"}) | {"tasks": self.tasks}
        params: dict[str, Any] = {"evaluator": self.name, "splits": sorted(self.splits), "harness": keys}
        if self.settings.include_path:
            files = sorted(path for path in Path(self.settings.include_path).rglob("*") if path.is_file() and path.suffix != ".pyc")
            params["files"] = {path.name: content_digest(path) for path in files}
        return Spec("judged", STAGE_VERSION, params, (self.model,))

    def run(self, out: Path, on: Launcher) -> None:
        """Holds an engine with room for the tasks' prompts, and has the harness's own client ask it, in a child."""
        if not find_spec("lm_eval"):
            raise BadInput("evaluation.harness: lm-evaluation-harness is not installed", remedy="pip install 'spinflow[harness]'")
        longest = self.settings.max_length - self.generation.max_new_tokens
        sampler = Sampler(self.model, self.generation, max(1, longest))
        with on.engines.lease(sampler, self.settings.concurrency) as engine:
            if engine.address is None:
                raise BadInput("evaluation.harness asks a vLLM server, and generation.engine is transformers", remedy="take engine: vllm")
            job = {
                "url": engine.address.url,
                "served": engine.address.model,
                "model": str(self.model.folder),
                "tasks": self.tasks,
                "settings": self.settings.model_dump(),
                "longest": max(sampler.longest, self.settings.max_length),
                "splits": list(self.splits),
                "out": str(out),
            }
            # the client reads its key there, and no file has it; bars without a line end would swallow what the child tells
            env = {"OPENAI_API_KEY": engine.address.key, "TQDM_DISABLE": "1"}
            on.job("spin_core.judging.harness_job", job, f"harness-{self.spec().digest}", self.label, env=env, node=engine.node)
