"""The stage `pairs` of the iteration that the recipe's model came out of, where somebody published them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.recipe import DataSettings, Recipe, StartPairs
from spin_core.recipe.identity import identity
from spin_core.runtime.launcher import Launcher
from spin_core.sources.locate import Source, locate
from spin_core.store import Ref, Spec

STAGE_VERSION = 1
ITERATION = -1  # whose pairs they are: of the one before this campaign's first


@dataclass(frozen=True)
class Published:
    """Pairs of the train rows, with the text's tokens by θ_0's tokenizer, or with those that the rows bring themselves."""

    pairs: StartPairs
    rules: dict[str, Any]
    model: Ref
    encoded: Ref
    home: Path
    label: str = "published pairs"

    @classmethod
    def of(cls, recipe: Recipe, model: Ref, encoded: Ref, home: Path) -> Published | None:
        """Where the recipe names some; rendered as the campaign's own rows are."""
        if recipe.start_pairs is None:
            return None
        rules = {
            "max_prompt_tokens": recipe.data.max_prompt_tokens,
            "max_new_tokens": recipe.generation.max_new_tokens,
            "chat_template_kwargs": recipe.model.chat_template_kwargs,
            "on_bad_row": recipe.data.on_bad_row,
        }
        return cls(recipe.start_pairs, rules, model, encoded, home)

    def spec(self) -> Spec:
        """The pairs' content, and what they are rendered with."""
        asked = identity(self.pairs, without={"name", "revision", "config"})
        params = {"start_pairs": asked | self._source.identity, **self.rules}
        return Spec("pairs", STAGE_VERSION, params, (self.model, self.encoded))

    def run(self, out: Path, on: Launcher) -> None:
        """Tokenises in a child."""
        source = self._source
        job: dict[str, Any] = {"model": str(self.model.folder), "encoded": str(self.encoded.folder), "out": str(out), "rules": self.rules}
        job |= {"name": source.name, "files": [str(file) for file in source.files], "commit": source.commit, "config": source.config}
        job |= {"split": self.pairs.split, "iteration": ITERATION}
        on.job("spin_core.pairs.published_job", job, f"published-{self.spec().digest}", "tokenising the published pairs")

    @property
    def _source(self) -> Source:
        asked = self.pairs
        return locate(DataSettings(name=asked.name, revision=asked.revision, config=asked.config, split=asked.split), self.home)
