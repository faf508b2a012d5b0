"""Against the real vLLM: lm-evaluation-harness through the stage is lm-evaluation-harness by hand, and a model that judges answers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow.parquet import read_table

from spin_core.contracts.rows import PROMPTS, SHARD
from spin_core.contracts.tables import write_rows
from spin_core.evaluation.duels import duel
from spin_core.generation.client import Address
from spin_core.generation.engine import Sampler
from spin_core.generation.pool import EnginePool
from spin_core.generation.vllm_server import VllmServer
from spin_core.judging.duel import Duel
from spin_core.judging.figures import read_figures
from spin_core.judging.harness import Harness
from spin_core.judging.harness_job import figure_of
from spin_core.recipe import GenerationSettings, HarnessSettings, JudgeSettings, ModelSettings
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.progress import Progress, listen
from spin_core.store import Ref, Spec, Store
from tests.stages import import_model

HEAD = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
KINDS = {
    "letters": """
output_type: multiple_choice
doc_to_choice: "{{options}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "words": """
output_type: generate_until
doc_to_target: "{{options[right]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}
BY_HAND = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
found = simple_evaluate(model="hf", model_args={"pretrained": sys.argv[1], "dtype": "float32"}, tasks=["letters", "words"], device="cpu",
    num_fewshot=0, task_manager=TaskManager(include_path=sys.argv[2]), log_samples=False, bootstrap_iters=0)
json.dump(found["results"], open(sys.argv[3], "w"), default=str)
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of each kind over 30 questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"After {n} comes", "options": [f" {n + 1}", f" {n + 7}", " nothing"], "right": n % 3} for n in range(30)]
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    for name, kind in KINDS.items():
        (folder / f"{name}.yaml").write_text(HEAD.format(task=name, data=folder / "rows.json") + kind)
    return folder


def harness(model: Ref, tasks: Path, engine: str = "vllm") -> Harness:
    settings = HarnessSettings(tasks={"letters": 0, "words": 0}, include_path=str(tasks), max_length=1000)
    return Harness(settings, GenerationSettings.model_validate({"engine": engine, "max_new_tokens": 32}), 0, model, ("test",))


@pytest.mark.engine
def test_the_stage_is_the_harness_by_hand(tmp_path: Path, tiny_model: Path, tasks: Path) -> None:
    store = Store(tmp_path / "home")
    model = import_model(store, ModelSettings(name=str(tiny_model)))
    stage = harness(model, tasks)
    told: list[Progress] = []
    end = listen(told.append)
    with EnginePool(store) as pool:
        made = Launcher(store, engines=pool).build(stage)
        end()
        with pool.lease(Sampler(model, stage.generation, 1000 - 32), 1) as engine:  # the same one
            assert isinstance(engine, VllmServer)
            judge_answers(tmp_path, engine.address)
    asked = [event for event in told if event.unit == "requests"]
    assert (asked[-1].done, asked[-1].total) == (30 * 3 + 30, 30 * 3 + 30)  # an option each, and an answer each
    by_hand = tmp_path / "by_hand.json"
    subprocess.run([sys.executable, "-c", BY_HAND, str(model.path), str(tasks), str(by_hand)], check=True, capture_output=True)
    expected, found = json.loads(by_hand.read_text()), json.loads((made.path / "results.json").read_text())
    for task, metrics in (("letters", ("acc,none", "acc_norm,none")), ("words", ("exact_match,none",))):
        for metric in metrics:
            assert found[task][task][metric] == expected[task][metric]
    assert 0.0 < found["letters"]["letters"]["acc_norm,none"] < 1.0
    figures = read_figures(made.path, "test")
    assert figures["letters"].values_N.mean() == found["letters"]["letters"]["acc_norm,none"]
    assert (figures["letters"].unit, figures["letters"].better, figures["words"].ids[0]) == ("share", "higher", "words/0")


def judge_answers(folder: Path, judge: Address) -> None:
    """A random model prefers something, and the same again; the other way round it prefers the opposite."""
    store = Store(folder / "duel")
    talk = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    prompts = [{"row_id": str(number), "real": talk} for number in range(6)]

    def answers(name: str, text: str) -> dict[str, tuple[Ref, ...]]:
        rows = [{"row_id": str(number), "generated": f"{text}{number}", "finish_reason": "stop"} for number in range(6)]
        made = store.build(Spec("shard", 1, {"name": name}), lambda out: write_rows(out / "shard.parquet", rows, SHARD) and None)
        return {"test": (made,)}

    asked = store.build(Spec("prompts", 1, {}), lambda out: write_rows(out / "test.parquet", prompts, PROMPTS) and None)
    settings = JudgeSettings(url=judge.url, model=judge.model, rows=4, api_key_env="TEST_JUDGE_KEY")
    os.environ["TEST_JUDGE_KEY"] = judge.key
    ours, theirs = answers("ours", "four, "), answers("theirs", "five, ")
    made = Launcher(store).build(Duel(settings, 1, 0, asked, ours, theirs))
    found = duel(made.path, "test")
    assert made.facts["asked"] == 8
    assert made.facts["prompt_tokens"] > 100
    assert found["won"]["prompts"] == 4 - sum(value is None for value in read_table(made.path / "test.parquet")["won"].to_pylist())
    other = duel(Launcher(store).build(Duel(settings, 0, 1, asked, theirs, ours)).path, "test")
    assert other["won"]["value"] == pytest.approx(1.0 - found["won"]["value"], abs=1e-3, nan_ok=True)


def test_the_content_of_own_tasks_counts(tmp_path: Path, tasks: Path) -> None:
    model = Ref("model", "m", tmp_path)
    before = harness(model, tasks).spec().digest
    (tasks / "rows.json").write_text("{}")
    assert harness(model, tasks).spec().digest != before


def test_presets_have_the_papers_shots(tmp_path: Path) -> None:
    settings = HarnessSettings(preset="open-llm-leaderboard-v1", tasks={"mine": None, "gsm8k": 8})
    found = Harness(settings, GenerationSettings(), 0, Ref("model", "m", tmp_path), ("test",)).tasks
    assert found == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "mmlu": 5,
        "truthfulqa_mc2": 0,
        "winogrande": 5,
        "gsm8k": 8,
        "mine": None,
    }


def test_a_group_is_one_figure_over_its_tasks_and_one_filter() -> None:
    def sample(doc: int, right: float, filtered: str) -> dict[str, Any]:
        return {"doc_id": doc, "filter": filtered, "exact_match": right}

    outcome = {
        "samples": {"b": [sample(0, 1.0, "strict"), sample(0, 0.0, "flexible")], "a": [sample(0, 0.0, "none"), sample(1, 1.0, "none")]},
        "configs": {"a": {}, "b": {}},
        "higher_is_better": {"a": {"exact_match": True}},
    }
    ids, figure = figure_of(outcome)
    assert (ids, figure.values, figure.unit) == (["a/0", "a/1", "b/0"], [0.0, 1.0, 1.0], "share")
    with pytest.raises(BadInput, match="gives no number a document"):
        figure_of({"samples": {"a": [{"doc_id": 0, "bleu": ("x", "y")}]}, "configs": {"a": {"task": "a"}}, "higher_is_better": {}})


def test_the_slow_engine_has_no_address(tmp_path: Path, tiny_model: Path, tasks: Path) -> None:
    store = Store(tmp_path / "home")
    model = import_model(store, ModelSettings(name=str(tiny_model)))
    with EnginePool(store) as pool, pytest.raises(BadInput, match="take engine: vllm"):
        Launcher(store, engines=pool).build(harness(model, tasks, "transformers"))
