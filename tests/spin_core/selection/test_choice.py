"""The choice by hand, and through its real children on a tiny model."""

import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from spin_core.contracts.rows import CHOICE, ENCODED, EPOCHS, PROMPTS
from spin_core.contracts.tables import write_rows
from spin_core.recipe import ModelSettings, TrainingSettings
from spin_core.runtime import devices, process
from spin_core.runtime.errors import ChildCrash, Corrupt
from spin_core.runtime.launcher import Launcher
from spin_core.selection import job, stage
from spin_core.selection.choice import START, Candidate, best, candidates, told, weigh
from spin_core.selection.stage import Choose, nothing_won
from spin_core.selection.weights import blend
from spin_core.store import Ref, Spec, Store
from tests.stages import import_model


def test_the_candidates() -> None:
    assert candidates([], []) == [START, Candidate(None, 1.0)]
    assert candidates([], [0.5, 0.25, 1.0]) == [START, *(Candidate(None, gamma) for gamma in (0.25, 0.5, 1.0))]
    steps = [Candidate(epoch, gamma) for epoch in (1, 2, None) for gamma in (0.5, 1.0)]
    assert candidates([2, 1], [0.5]) == [START, *steps]


def test_weighed_by_hand() -> None:
    """Rows of 1 and 3 tokens. What all tokens gain alike has no error; what one row gains has."""
    logps, tokens = np.array([[-2.0, -6.0], [-1.0, -3.0], [-2.0, -4.0]]), np.array([1, 3])
    start, even, uneven = weigh(candidates([], [0.5]), logps, tokens)
    assert (start.nll, start.gain, start.error) == (2.0, 0.0, 0.0)
    assert (even.nll, even.gain, even.error) == (1.0, 1.0, 0.0)
    assert (uneven.nll, uneven.gain) == (1.5, 0.5)
    # differences 0 and 2, the ratio's share of them 0.5 and 1.5: squares 0.25 + 0.25, two rows
    assert uneven.error == pytest.approx(math.sqrt(2 * 0.5) / 4)
    assert best([start, even, uneven], may_stay=True) == even
    assert "γ 0.5 at the end of training, of 2 models: 1.0000 nats a token, better than θ_t by 1.0000 ± 0.0000 (2 valid" in told(
        [start, even, uneven], even, 2
    )


@given(st.lists(st.floats(0.01, 9) | st.just(math.nan), min_size=2, max_size=9))
def test_the_lowest_is_taken_and_theta_t_only_where_it_may_stay(nlls: list[float]) -> None:
    weighed = weigh([START, *[Candidate(None, 1.0)] * (len(nlls) - 1)], -np.array(nlls)[:, None], np.array([1]))
    for may_stay in (True, False):
        among = [nll for nll in nlls[0 if may_stay else 1 :] if not math.isnan(nll)]
        taken = best(weighed, may_stay)
        assert taken.nll == min(among) if among else math.isnan(taken.nll)
        assert may_stay or taken is not weighed[0]


def test_right_answers_count_where_they_are_known() -> None:
    """Four rows; the second model has two of them right for sure and one more wrong than θ_t, so its mean of logarithms is worse."""
    share = np.array([[0.4, 0.4, 0.4, 0.4], [0.6, 0.5, 0.4, 0.4], [0.99, 0.99, 0.4, 0.04], [1.0, 1.0, 1.0, 1e-30]])
    weighed = weigh(candidates([], [0.25, 0.5]), np.log(share), np.ones(4, dtype=np.int64))
    assert [one.exact for one in weighed] == pytest.approx([0.4, 0.475, 0.605, 0.75])
    assert best(weighed, may_stay=True) is weighed[1]
    assert best(weighed, may_stay=True, right_counts=True) is weighed[3]  # four rows say nothing for sure
    many = weigh(candidates([], [0.25, 0.5]), np.log(np.repeat(share, 200, axis=1)), np.ones(800, dtype=np.int64))
    assert best(many, may_stay=True, right_counts=True) is many[1]  # the two others lose likelihood for sure
    rare = weigh(candidates([], []), np.log([[0.001, 0.08], [0.0001, 0.9]]), np.array([9, 9]))  # long answers: one row would decide
    assert rare[0].exact < 0.05
    assert best(rare, may_stay=True, right_counts=True) is best(rare, may_stay=True)
    assert "γ 0.25 at the end of training, of 3 models: 47.5% of samples the human answer, θ_t's 40.0%" in told(many, many[1], 800, True)
    assert "nothing was won: none of 3 models is better than θ_t (40.0% of its samples" in told(many, many[0], 800, True)


class World:
    """A tiny θ_t, and models at chosen distances from it along the way that makes the validation rows likelier."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.store = Store(folder)
        self.start = import_model(self.store, ModelSettings(name=str(model)))
        rng = np.random.default_rng(0)
        self.rows = [
            {
                "row_id": str(number),
                "prompt_ids": rng.integers(3, 250, rng.integers(1, 20)).tolist(),
                "real_ids": [*rng.integers(3, 250, rng.integers(0, 9)).tolist(), 2],
            }
            for number in range(24)
        ]
        self.encoded = self.store.build(
            Spec("encoded", 1, {}), lambda out: write_rows(out / "validation.parquet", self.rows, ENCODED) and None
        )
        self.prompts = self.checked(None)
        self.weights = load_file(self.start.path / "model.safetensors")
        loaded: Any = self.load(self.start.path)
        self.nll(loaded).backward()
        self.slope = {name: weight.grad.clone() for name, weight in loaded.named_parameters()}

    def checked(self, check: str | None) -> Ref:
        """The rows before they were encoded, with or without checks."""
        rows = [{"row_id": row["row_id"], "real": [], "generated": [], "source": "", "row_number": 1, "check": check} for row in self.rows]
        return self.store.build(
            Spec("prompts", 1, {"check": check}), lambda out: write_rows(out / "validation.parquet", rows, PROMPTS) and None
        )

    @staticmethod
    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def nll(self, model: Any) -> Any:
        """Nats a token of the human answers, one sequence at a time from the full logits: independent of the scorer."""
        total = 0.0
        for row in self.rows:
            ids = torch.tensor([[*row["prompt_ids"], *row["real_ids"]]])
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            total = total - logps[len(row["prompt_ids"]) - 1 :].sum()
        return total / sum(len(row["real_ids"]) for row in self.rows)

    def at(self, distance: float) -> dict[str, torch.Tensor]:
        return {name: weight - distance * self.slope[name] for name, weight in self.weights.items()}

    def trained(self, distance: float, epochs: dict[int, float] | None = None, shard: int = 0) -> Ref:
        """What a training leaves, its weights in files of up to `shard` bytes if that is given."""

        def write(out: Path) -> None:
            model = self.load(self.start.path)
            for folder, far in {out: distance, **{out / EPOCHS / str(n): far for n, far in (epochs or {}).items()}}.items():
                model.load_state_dict(self.at(far))
                model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
            (out / "tokenizer.json").write_text("{}")
            (out / "metrics.jsonl").write_text('{"step": 1}\n')

        return self.store.build(Spec("model", 1, {"far": distance, "epochs": epochs, "shard": shard}), write)

    def choose(self, trained: Ref, store: Store | None = None, **training: Any) -> Ref:
        settings = TrainingSettings.model_validate(training | {"precision": "fp32"})
        return Launcher(store or self.store).build(Choose(settings, self.start, trained, self.encoded, self.prompts))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    return World(tmp_path_factory.mktemp("home"), tiny_model)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's own code, without the seconds that a child takes to start; the test of a killed one has children."""
    monkeypatch.setattr(process, "run_job", lambda _module, work, *_, **__: job._work(work))


GAMMAS = [0.125, 0.25, 0.5]


@pytest.mark.parametrize("shard", [0, 60_000])
def test_the_step_with_the_lowest_nll_is_taken(world: World, in_process: None, shard: int) -> None:
    """Training went too far; between θ_t and its end lies a better model, and it is a whole one."""
    trained = world.trained(40.0, shard=shard)
    assert (len(list(trained.path.glob("*.safetensors"))) > 1) is bool(shard)
    chosen = world.choose(trained, line_search=GAMMAS)
    content = json.loads((chosen.path / CHOICE).read_text())
    expected = {}
    for gamma in (0.0, *GAMMAS, 1.0):
        model = world.load(world.start.path)
        model.load_state_dict(world.at(40.0 * gamma))
        with torch.no_grad():
            expected[gamma] = float(world.nll(model))
    assert {entry["gamma"]: entry["nll"] for entry in content["candidates"]} == pytest.approx(expected, abs=1e-4)
    gamma = min(expected, key=lambda g: expected[g])
    assert 0.0 < gamma < 1.0, "the test's models must have their best between them"
    assert (content["taken"]["gamma"], chosen.facts["gamma"], content["nothing_won"]) == (gamma, gamma, False)
    assert content["rows"] == len(world.rows)
    assert not nothing_won(chosen)
    found = world.load(chosen.path).state_dict()
    for name, weight in world.at(40.0 * gamma).items():
        assert torch.allclose(found[name], weight, atol=1e-6), name
    names = {file.name for file in trained.path.iterdir()} - {"MANIFEST.json"}
    assert {file.name for file in chosen.path.iterdir()} == names | {CHOICE, "MANIFEST.json"}
    assert not list(world.store.home.glob("work/*"))


def test_rows_that_carry_checks_are_looked_at(world: World, in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a campaign whose right answers count goes on with the model that has the better mean of logarithms."""
    asked = list[bool]()
    monkeypatch.setattr(stage, "best", lambda weighed, _stay, right_counts: asked.append(right_counts) or weighed[0])
    trained = world.trained(0.5)
    plain = world.choose(trained, line_search=[0.5])
    world.prompts, before = world.checked('{"exact": "4"}'), world.prompts
    checked = world.choose(trained, line_search=[0.5])
    world.prompts = before
    assert asked == [False, True]
    assert plain.digest != checked.digest


def test_nothing_won_leaves_theta_t(world: World, in_process: None) -> None:
    """Training made human answers less likely at once: the next player is this one, and everyone is told."""
    chosen = world.choose(world.trained(-4.0), line_search=GAMMAS)
    assert nothing_won(chosen)
    assert json.loads((chosen.path / CHOICE).read_text())["nothing_won"]
    assert "nothing was won: none of 4 models" in chosen.facts["message"]
    found = load_file(chosen.path / "model.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in world.weights.items())
    assert (chosen.path / "tokenizer.json").read_bytes() == (world.start.path / "tokenizer.json").read_bytes()
    assert (chosen.path / "metrics.jsonl").exists()
    # without a line search there is no way back
    assert not nothing_won(world.choose(world.trained(-4.0, {1: -2.0}), choose_epoch=True))


def test_the_best_epoch_is_taken(world: World, in_process: None) -> None:
    trained = world.trained(60.0, {1: 1.0, 2: 30.0})
    chosen = world.choose(trained, choose_epoch=True)
    content = json.loads((chosen.path / CHOICE).read_text())
    assert [(entry["epoch"], entry["gamma"]) for entry in content["candidates"]] == [(None, 0.0), (1, 1.0), (2, 1.0), (None, 1.0)]
    assert (chosen.facts["epoch"], chosen.facts["gamma"]) == (1, 1.0)
    assert torch.equal(load_file(chosen.path / "model.safetensors")["lm_head.weight"], world.at(1.0)["lm_head.weight"])
    assert not (chosen.path / EPOCHS).exists()
    both = world.choose(trained, choose_epoch=True, line_search=[0.25])
    assert both.facts["candidates"] == 1 + 3 * 2
    assert both.facts["nll"] <= chosen.facts["nll"]
    ends = world.choose(trained, line_search=[0.25])
    assert ends.facts["candidates"] == 3  # epochs that are there but not asked for take no part


def test_every_device_scores_and_none_scores_what_another_has(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs side by side, each with a device of its own, take candidates as they get on; a third writes what was taken."""
    hold, seen = devices._try_to_hold, list[tuple[str, int, bool]]()
    monkeypatch.setattr(devices, "_try_to_hold", lambda group, folder: hold(group, tmp_path / "locks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none-0,none-1")
    logps, times = job._logps, list[str]()
    monkeypatch.setattr(job, "_logps", lambda work, *rest: times.append(work["model"]) or logps(work, *rest))

    def run_job(_module: str, work: dict[str, Any], *_: Any, env: dict[str, str], part: int, **__: Any) -> None:
        seen.append((env.get("CUDA_VISIBLE_DEVICES", ""), part, "take" in work))
        job._work(work)

    monkeypatch.setattr(process, "run_job", run_job)
    trained = world.trained(40.0)
    chosen = world.choose(trained, Store(tmp_path), line_search=GAMMAS)
    assert sorted(seen[:2]) == [("none-0", 0, False), ("none-1", 1, False)]
    assert [written for _, _, written in seen] == [False, False, True]
    assert len(times) == len(set(times)) == len(GAMMAS) + 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chosen.facts["gamma"] == world.choose(trained, line_search=GAMMAS).facts["gamma"]


def test_models_that_do_not_match_are_not_mixed(world: World, tmp_path: Path) -> None:
    """A head that one of them has and the other takes from its embedding would be lost in silence."""
    weights = dict(world.weights)
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(Corrupt, match=r"do not have the same weights, first lm_head\.weight"):
        blend(world.start.path, tmp_path, 0.5, tmp_path / "out")


@pytest.mark.long
def test_a_killed_choice_goes_on(world: World, tmp_path: Path) -> None:
    """In real children, on the one device there is; what was scored is not scored again, and nothing half-written is taken."""
    trained, store, many = world.trained(40.0), Store(tmp_path), [step / 20 for step in range(1, 16)]

    def scored() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("work/*/*.parquet")}

    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.002):
            if len(scored()) >= 2:
                for child in process.live():
                    os.kill(child.pid, signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(ChildCrash, match="-9"):
        world.choose(trained, store, line_search=many)
    over.set()
    thread.join()
    kept = scored()
    assert 2 <= len(kept) < len(many) + 2
    seen: dict[str, int] = {}
    run_job = process.run_job

    def run(*args: Any, **kwargs: Any) -> None:
        run_job(*args, **kwargs)
        seen.update(scored())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "run_job", run)
        chosen = world.choose(trained, store, line_search=many)
    assert kept.items() <= seen.items()
    assert len(seen) == len(many) + 2
    content = json.loads((chosen.path / CHOICE).read_text())
    assert content["taken"] == min(content["candidates"], key=lambda entry: entry["nll"])
