"""The child of `spinflow init` that counts tokens: the rows as the model's own tokenizer and template give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spin_core.contracts.tables import count_rows, iter_tables
from spin_core.runtime import process

_ROWS = 4000  # at most, evenly over the rows
_BATCH = 256
_AT = (50, 95, 99, 100)  # percentiles
_NO_LIMIT = 10**9


def _work(job: dict[str, Any]) -> None:
    import numpy as np

    from spin_core.encoding.chat import Encoded, Renderer

    renderer = Renderer(Path(job["model"]), {})
    template = renderer.tokenizer.chat_template
    template = template if isinstance(template, str) else json.dumps(template)
    talks = _talks(Path(job["prompts"]) / "train.parquet")
    thinking = sum("</think>" in talk[-1]["content"] for talk in talks) / len(talks)
    kwargs = {"enable_thinking": False} if "enable_thinking" in template and thinking < 0.5 else {}
    renderer = Renderer(Path(job["model"]), kwargs)
    found = [one for start in range(0, len(talks), _BATCH) for one in renderer.encode(talks[start : start + _BATCH], _NO_LIMIT)]
    good = [one for one in found if isinstance(one, Encoded)]
    refused = [str(one) for one in found if not isinstance(one, Encoded)]
    lengths = {"prompt": [len(one.prompt_ids) for one in good], "answer": [len(one.real_ids) for one in good]}
    told: dict[str, Any] = {"rows": len(talks), "refused": len(refused), "why": refused[0] if refused else "", "thinking": thinking}
    told |= {"kwargs": kwargs, "added": [text for text, _ in renderer.added.most_common(1)]}
    if good:
        told |= {name: {str(at): int(np.percentile(some, at)) for at in _AT} for name, some in lengths.items()}
    Path(job["out"]).write_text(json.dumps(told))


def _talks(file: Path) -> list[Any]:
    """Some rows' conversations, evenly from the first to the last."""
    step = max(1, count_rows(file) // _ROWS)
    content = (row["real"] for table in iter_tables(file, ["real"]) for row in table.to_pylist())
    return [talk for number, talk in enumerate(content) if number % step == 0][:_ROWS]


if __name__ == "__main__":
    process.job_main(_work)
