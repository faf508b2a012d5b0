"""`spinflow finetune`: the official training run on pairs from folders, files or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.official.config import Finetune
from spin_core.official.model_folder import copy_model
from spin_core.players.stage import Import
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.progress import tell
from spin_core.scoring.stage import Score
from spin_core.sources.locate import Source, locate
from spin_core.store import Ref, Spec, Store
from spin_core.training.stage import Train

if TYPE_CHECKING:
    from spin_core.cluster.machine import ClusterMachine

STAGE_VERSION = 4


def finetune(store: Store, plan: Finetune, cluster: ClusterMachine | None = None) -> Path:
    """Trains and copies the model to the output folder. A killed run continues from its last checkpoint."""
    if plan.unused:
        tell("finetune", f"keys that change nothing here: {', '.join(plan.unused)}")
    on = Launcher(store, "finetune", machine=cluster)
    training = plan.recipe.training
    if cluster and training.precision == "auto":
        training = training.model_copy(update={"precision": cluster.precision()})
    model = on.build(Import(plan.recipe.model, store.home))
    pairs = on.build(OfficialPairs(plan, model, store))
    reference = on.build(Score(training, model, pairs, splits=("train",)))
    player = on.build(Train(training, model, pairs, reference))
    copy_model(player.path, plan.output_dir)
    facts = player.facts
    tell("finetune", f"{facts['steps']} steps, last loss {facts['loss']:.3f}; the model is in {plan.output_dir}")
    return plan.output_dir


@dataclass(frozen=True)
class OfficialPairs:
    """The mixed data sets as `pairs`, tokenised where they do not bring the tokens that were sampled."""

    plan: Finetune
    model: Ref
    store: Store
    label: str = "finetune"

    @property
    def _sources(self) -> dict[str, Source]:
        data = self.plan.recipe.data
        return {name: locate(data.model_copy(update={"name": name, "split": self.plan.split}), self.store.home) for name in self.plan.mixer}

    @property
    def _rules(self) -> dict[str, Any]:
        recipe = self.plan.recipe
        limits = {"max_prompt_tokens": recipe.data.max_prompt_tokens, "max_new_tokens": recipe.generation.max_new_tokens}
        return limits | {"chat_template_kwargs": recipe.model.chat_template_kwargs, "on_bad_row": recipe.data.on_bad_row}

    def spec(self) -> Spec:
        """The data sets with their shares, the rules of rendering, and the tokenizer's model."""
        sources = self._sources
        mix = [{"share": share, **sources[name].identity} for name, share in self.plan.mixer.items()]
        params = {"official": mix, "split": self.plan.split, "max_rows": self.plan.max_rows, **self._rules}
        return Spec("pairs", STAGE_VERSION, params, (self.model,))

    def run(self, out: Path, on: Launcher) -> None:
        """Tokenises in a child."""
        sources = self._sources
        job: dict[str, Any] = {"model": str(self.model.path), "out": str(out), "split": self.plan.split, "max_rows": self.plan.max_rows}
        job["rules"] = self._rules
        job["sources"] = [
            {"name": name, "share": share, "files": [str(file) for file in sources[name].files], "commit": sources[name].commit}
            for name, share in self.plan.mixer.items()
        ]
        on.job("spin_core.official.pairs_job", job, f"pairs-{self.spec().digest}", "tokenising the pairs")
