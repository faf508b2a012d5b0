"""The stage `reformat`: the source's rows as a `prompts` artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spin_core.recipe import DataSettings
from spin_core.runtime import process
from spin_core.runtime.progress import tell
from spin_core.sources.locate import locate
from spin_core.store import Ref, Spec, Store

STAGE_VERSION = 2


def reformat(store: Store, settings: DataSettings) -> Ref:
    """Writes train.parquet, test.parquet and rejected.parquet. Held-out contexts are never trained on."""
    source = locate(settings, store.home)
    params = settings.model_dump(exclude={"max_prompt_tokens", "name", "revision", "config"}) | source.identity
    spec = Spec("prompts", STAGE_VERSION, params)

    def write(staging: Path) -> dict[str, Any]:
        job = {"settings": settings.model_dump(), "files": [str(file) for file in source.files], "commit": source.commit}
        log = store.log_path(f"reformat-{spec.digest}")
        process.run_job("spin_core.sources.job", job | {"out": str(staging)}, log, name="reading the data")
        facts: dict[str, Any] = json.loads((staging / "facts.json").read_text())
        (staging / "facts.json").unlink()
        return facts

    ref = store.build(spec, write)
    where = f" · {ref.path / 'rejected.parquet'}" if ref.facts["rejected"] else ""
    tell("data", ref.facts["message"] + where)
    return ref
