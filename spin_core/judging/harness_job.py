"""The child that runs lm-evaluation-harness against a served model and turns its samples into figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spin_core.judging.evaluators import Figure
from spin_core.judging.figures import write_figures
from spin_core.runtime.errors import BadInput
from spin_core.runtime.process import job_main
from spin_core.runtime.progress import Teller

_METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")  # of a task that has several, the first is the figure
_SHARES = {*_METRICS, "em", "f1"}


def _work(job: dict[str, Any]) -> None:
    from lm_eval.tasks import TaskManager

    settings = job["settings"]
    served = _client()(
        base_url=f"{job['url']}/v1/completions",
        model=job["served"],
        tokenizer=job["model"],
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        num_concurrent=settings["concurrency"],
        max_length=job["longest"],
        timeout=3600,
    )
    manager = TaskManager(include_path=settings["include_path"])
    if unknown := [name for name in job["tasks"] if not manager.match_tasks([name])]:
        raise BadInput(f"evaluation.harness: there is no task {unknown[0]!r}", remedy="`lm_eval ls tasks` lists all; see include_path")
    results: dict[str, Any] = {}
    found: dict[str, tuple[list[str], Figure]] = {}
    for name, shots in job["tasks"].items():
        outcome = _evaluated(served, manager, name, shots, settings["limit"])
        results[name] = outcome["results"]
        found[name] = figure_of(outcome)
    out = Path(job["out"])
    (out / "results.json").write_text(json.dumps(results, indent=1, default=str))
    ids = [row for rows, _ in found.values() for row in rows]
    figures = {name: _spread(figure, rows, ids) for name, (rows, figure) in found.items()}
    for split in job["splits"]:
        write_figures(out, split, ids, figures)


def _client() -> Any:
    """The harness's own client, which also tells how many of a task's requests are answered."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class Client(LocalCompletionsAPI):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._teller = Teller("", 0, "requests")

        def loglikelihood(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            self._teller.add(0, ahead=len(requests))
            return super().loglikelihood(requests, *args, **kwargs)

        def generate_until(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            self._teller.add(0, ahead=len(requests))
            return super().generate_until(requests, *args, **kwargs)

        async def amodel_call(self, *args: Any, **kwargs: Any) -> Any:
            answers = await super().amodel_call(*args, **kwargs)
            self._teller.add(len(answers))
            return answers

    return Client


def _evaluated(served: Any, manager: Any, name: str, shots: int | None, limit: int | None) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    found: dict[str, Any] = simple_evaluate(
        model=served, tasks=[name], num_fewshot=shots, limit=limit, task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    return found


def figure_of(outcome: Mapping[str, Any]) -> tuple[list[str], Figure]:
    """One value a document of all tasks that a name stands for, by the first metric and filter that they have."""
    ids: list[str] = []
    values: list[float | None] = []
    metrics: set[str] = set()
    better = "higher"
    for task, samples in sorted(outcome["samples"].items()):
        metric = _metric(samples[0], outcome["configs"][task])
        metrics.add(metric)
        better = "higher" if outcome["higher_is_better"].get(task, {}).get(metric, True) else "lower"
        first = samples[0].get("filter")
        for sample in (sample for sample in samples if sample.get("filter") == first):
            ids.append(f"{task}/{sample['doc_id']}")
            values.append(float(sample[metric]))
    unit = "share" if metrics <= _SHARES else "score"
    return ids, Figure(values, unit, "higher" if better == "higher" else "lower")  # type: ignore[arg-type]


def _metric(sample: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    known = [entry["metric"] for entry in config.get("metric_list") or [] if isinstance(entry.get("metric"), str)]
    ordered = [*(name for name in _METRICS if name in sample), *(name for name in known if name in sample)]
    if not ordered or not isinstance(sample[ordered[0]], int | float):
        raise BadInput(f"evaluation.harness: {config.get('task')} gives no number a document", remedy="leave this task out")
    return str(ordered[0])


def _spread(figure: Figure, rows: Sequence[str], ids: Sequence[str]) -> Figure:
    """The figure over the documents of all tasks; it has no value on those of others."""
    own = dict(zip(rows, figure.values, strict=True))
    return Figure([own.get(row) for row in ids], figure.unit, figure.better)


if __name__ == "__main__":
    job_main(_work)
