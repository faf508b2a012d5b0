"""Scoring and training through their real children, on a tiny model."""

import json
import math
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from spin_core.contracts.rows import EPOCHS, PAIRS, TEST_FILE, TRAIN_FILE
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.lm.logprobs import answer_logps, collate
from spin_core.recipe import ModelSettings, Recipe
from spin_core.runtime import process, progress
from spin_core.runtime.errors import BadInput, ChildCrash, SpinflowError
from spin_core.scoring.beta import Surprise
from spin_core.scoring.scores import IDS, SHARD_SCORES, join_shards, read_scores
from spin_core.store import Ref, Spec, Store
from spin_core.training.epochs import epoch_ends
from spin_core.training.job import _objective
from tests.stages import finetune, import_model, score

Lengths = tuple[int, int]


def make_pairs(store: Store, count: int, *, prompt: Lengths = (1, 20), real: Lengths = (0, 9), generated: Lengths = (1, 12)) -> Ref:
    """Random ids of lengths within these bounds; a real answer has an EOS more. Three pairs are held out."""
    rng = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 250) for _ in range(rng.randint(low, high))]

    def row(number: int) -> dict[str, Any]:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        return {
            "row_id": f"{number:016x}",
            "iteration": 0,
            "real": turns,
            "generated": turns,
            "prompt_ids": ids(*prompt),
            "real_ids": [*ids(*real), 2],
            "generated_ids": ids(*generated),
            "finish_reason": "length",
            "check": None,
        }

    def write(staging: Path) -> None:
        write_rows(staging / TRAIN_FILE, map(row, range(count)), PAIRS)
        write_rows(staging / TEST_FILE, map(row, range(count, count + 3)), PAIRS)

    return store.build(Spec("pairs", 1, {"count": count, "lengths": [prompt, real, generated]}), write)


def recipe_for(model: Path, **training: Any) -> Recipe:
    settings = {"epochs": 1, "pairs_per_step": 8, "tokens_per_micro_batch": 512, "warmup_ratio": 0.0, "learning_rate": 1e-3}
    settings |= {"beta": 0.1} | training
    return Recipe.model_validate(
        {"name": "t", "model": {"name": str(model)}, "data": {"name": "demo", "validation_size": 9}, "training": settings}
    )


def steps(model: Ref) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (model.path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Store, Ref, Ref, Ref]:
    store = Store(tmp_path_factory.mktemp("home"))
    model = import_model(store, ModelSettings(name=str(tiny_model)))
    pairs = make_pairs(store, 20)
    return store, model, pairs, score(store, recipe_for(tiny_model), model, pairs)


def on_step(step: int, act: Callable[[list[int]], None]) -> Callable[[], None]:
    """Calls `act` with the trainer's processes once it has done `step` steps, until the function that it returns is called."""

    def look(event: progress.Progress) -> None:
        if event.name == "iter-0 · training" and event.done == step:
            act([pid for child in process.live() for pid in (*process.descendants(child.pid), child.pid)])

    return progress.listen(look)


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """SIGKILLs the trainer and all that it started when it has done `step` steps; the block ends in a ChildCrash."""

    def kill(pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    end = on_step(step, kill)
    with pytest.raises(ChildCrash):
        yield
    end()


def test_scores_are_those_of_a_live_model(world: tuple[Store, Ref, Ref, Ref]) -> None:
    """Full logits, one unpadded sequence at a time, in float64: independent of the scorer's batching and chunks."""
    _, model_ref, pairs, reference = world
    model = AutoModelForCausalLM.from_pretrained(model_ref.path, dtype=torch.float64).eval()
    for file, scores_file in ((TRAIN_FILE, "scores.parquet"), (TEST_FILE, "test_scores.parquet")):
        scores = read_scores(reference.path / scores_file, pairs.path / file).to_pylist()
        for row, scored in zip(read_rows(pairs.path / file), scores, strict=True):
            for side, found in zip(("real_ids", "generated_ids"), scored.values(), strict=True):
                ids = torch.tensor([[*row["prompt_ids"], *row[side]]])
                with torch.no_grad():
                    logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
                assert found == pytest.approx(logps[len(row["prompt_ids"]) - 1 :].sum().item(), abs=1e-3)


def test_gradients_do_not_depend_on_padding(tiny_model: Path) -> None:
    prompts, answers = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14, 2]]
    gradients = []
    for batches in ([(prompts, answers)], [(prompts[:1], answers[:1]), (prompts[1:], answers[1:])]):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        for batch in batches:
            answer_logps(model, collate(*batch)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-4


def test_a_step_at_the_papers_rate_changes_the_checkpoint(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path) -> None:
    """In pure bf16 a 5e-7 update is lost in rounding; fp32 master weights keep it."""
    store, model, pairs, reference = world
    recipe = recipe_for(tiny_model, learning_rate=5e-7, pairs_per_step=20, warmup_ratio=0.1)  # one step, which is all of the warm-up
    new = finetune(store, recipe, 0, model, pairs, reference)
    before, after = (AutoModelForCausalLM.from_pretrained(ref.path).state_dict() for ref in (model, new))
    assert after["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32
    assert all(not torch.equal(before[name], after[name]) for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight"))
    assert (new.path / "tokenizer.json").exists()
    assert not list(new.path.glob("*.bin"))
    first = steps(new)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert first["learning_rate"] == 5e-7
    assert {"rewards/real", "rewards/generated", "rewards/accuracies", "rewards/margins", "logps/real", "grad_norm", "pairs/s"} <= set(
        first
    )


def test_micro_batches_do_not_change_the_losses(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path, tmp_path: Path) -> None:
    """20 pairs in steps of 8: two whole steps and a last one of 4, one pair at a time or all at once."""
    _, model, pairs, reference = world
    curves = []
    for tokens in (1, 4096):
        new = finetune(Store(tmp_path / str(tokens)), recipe_for(tiny_model, tokens_per_micro_batch=tokens), 0, model, pairs, reference)
        curves.append([(line["loss"], line["grad_norm"]) for line in steps(new)])
    assert len(curves[0]) == 3
    for one, eight in zip(*curves, strict=True):
        assert one == pytest.approx(eight, rel=1e-4)


def test_a_run_that_changes_nothing_is_refused(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path) -> None:
    """The next iteration would play against the same model, and nobody would know."""
    store, model, pairs, reference = world
    with pytest.raises(BadInput, match=r"training changed none of \d+ weights.*raise learning_rate"):
        finetune(store, recipe_for(tiny_model, learning_rate=1e-30, pairs_per_step=20), 0, model, pairs, reference)


def test_a_run_may_stop_in_the_middle_of_its_schedule_and_take_beta_from_the_data(
    world: tuple[Store, Ref, Ref, Ref], tiny_model: Path
) -> None:
    """Two epochs of six: each pair twice, at the rates that six epochs would have there."""
    store, model, pairs, reference = world
    real = [row["real_logp"] for row in read_rows(reference.path / "scores.parquet")]
    found = Surprise.read(reference.path)
    assert found.mean_real_nll == pytest.approx(-sum(real) / len(real))
    assert found.mean_real_tokens == sum(len(row["real_ids"]) for row in read_rows(pairs.path / TRAIN_FILE)) / len(real)

    def write(staging: Path) -> None:
        shutil.copy(reference.path / "scores.parquet", staging)
        Surprise(6.0, 3.0).write(staging)

    shorter = store.build(Spec("reference", 1, {"as if": "6 nats"}), write)
    changes: dict[str, Any] = {"epochs": 6, "stop_after_epochs": 2, "pairs_per_step": 10, "warmup_ratio": 0.25, "beta": "auto"}
    new = finetune(store, recipe_for(tiny_model, **changes), 0, model, pairs, shorter)
    lines = steps(new)
    rates = [1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3 * 9 / 10]  # of 12 steps, 3 of them warm-up
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)
    assert new.facts["beta"] == lines[0]["beta"] == 0.5
    for side in ("real", "generated"):
        assert lines[-1][f"logratio/{side}"] == pytest.approx(lines[-1][f"rewards/{side}"] / 0.5)


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 6))
def test_epochs_end_where_their_last_pair_is(pairs: int, size: int, epochs: int) -> None:
    """Counted pair by pair. The last step is the end of training, which has its model anyway."""
    step_of = [pair // size + 1 for pair in range(pairs * epochs)]
    expected: dict[int, int] = {}
    for epoch in range(1, epochs + 1):
        expected.setdefault(step_of[pairs * epoch - 1], epoch)
    expected.pop(step_of[-1])
    assert epoch_ends(pairs, size, epochs) == expected


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return found


@pytest.mark.long
def test_one_model_an_epoch_is_kept_and_survives_a_crash(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path, tmp_path: Path) -> None:
    """Epoch 1 ends before the checkpoint that the killed run goes on from; its model is that of a run that stopped there."""
    _, model, pairs, reference = world
    settings: dict[str, Any] = {"epochs": 3, "pairs_per_step": 10, "save_steps": 3}
    recipe, store = recipe_for(tiny_model, choose_epoch=True, **settings), Store(tmp_path / "killed")
    with killed_at(4):
        finetune(store, recipe, 0, model, pairs, reference)
    new = finetune(store, recipe, 0, model, pairs, reference)
    assert sorted(folder.name for folder in (new.path / EPOCHS).iterdir()) == ["1", "2"]
    stopped = finetune(store, recipe_for(tiny_model, stop_after_epochs=1, **settings), 0, model, pairs, reference)
    assert not (stopped.path / EPOCHS).exists()
    first, second, third, alone = map(weights, (new.path / EPOCHS / "1", new.path / EPOCHS / "2", new.path, stopped.path))
    assert all(torch.allclose(first[name], alone[name], atol=1e-6) for name in alone)
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])
    assert not torch.equal(second["lm_head.weight"], third["lm_head.weight"])
    assert not list(new.path.rglob("*.bin"))


def test_an_adapters_epochs_are_whole_models(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path) -> None:
    store, model, pairs, reference = world
    new = finetune(store, recipe_for(tiny_model, choose_epoch=True, epochs=2, lora={"r": 4}), 0, model, pairs, reference)
    assert not (new.path / EPOCHS / "1" / "adapter").exists()
    first, last, start = map(weights, (new.path / EPOCHS / "1", new.path, model.path))
    name = "model.layers.0.mlp.up_proj.weight"
    assert first.keys() == last.keys()
    assert len({tuple(found[name].flatten().tolist()) for found in (first, last, start)}) == 3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beta": 0.1}, "beta 0.1 asks for 30 nats, and human answers have 12.5 left"),
        ({"beta": 0.3}, None),  # 10 nats
        ({"beta": 0.1, "loss": "hinge"}, None),  # 10 nats
        ({"beta": "auto"}, None),
        ({"beta": 0.5, "loss": "sigmoid_norm"}, "beta 0.5 asks for 24 nats"),  # 6 a token, 4 tokens
    ],
)
def test_a_fixed_beta_that_asks_for_too_much_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], told: str | None
) -> None:
    Surprise(12.5, 4.0).write(tmp_path)
    chosen = {"label_smoothing": 0.0, "sft_weight": 0.0, "history_weight": 0.0, "loss": "sigmoid"} | settings
    assert _objective({"reference": str(tmp_path), "training": chosen}).beta == {"auto": 0.24}.get(settings["beta"], settings["beta"])
    event = progress.parse_line(capsys.readouterr().out)
    assert (event.note.startswith(told) and event.total == 0) if event and told else event is told


@pytest.mark.parametrize(("settings", "expected"), [({"loss": "ipo"}, 25.0), ({"loss": "sppo", "beta": 0.25}, 8.0)])
def test_every_loss_starts_where_the_step_0_check_expects(
    world: tuple[Store, Ref, Ref, Ref], tiny_model: Path, settings: dict[str, Any], expected: float
) -> None:
    store, model, pairs, reference = world
    first = steps(finetune(store, recipe_for(tiny_model, **settings), 0, model, pairs, reference))[0]
    assert first["loss"] == pytest.approx(expected, rel=1e-3)
    assert first["tokens/s"] > first["pairs/s"]


@pytest.mark.parametrize("loss", ["sigmoid", pytest.param("sigmoid_norm", marks=pytest.mark.long)])
def test_packed_and_trl_give_the_same_losses(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path, tmp_path: Path, loss: str) -> None:
    """Five steps. `training.backend` is not in the digest: it may change speed and memory, never the curve; nor may checkpointing."""
    _, model, pairs, reference = world
    runs = []
    variants = [("packed", False), ("trl", False), ("packed", True)]
    for backend, checkpointing in variants if loss == "sigmoid" else variants[:2]:
        recipe = recipe_for(
            tiny_model,
            backend=backend,
            gradient_checkpointing=checkpointing,
            pairs_per_step=4,
            loss=loss,
            beta=0.1 if loss == "sigmoid" else 5.0,
        )
        new = finetune(Store(tmp_path / f"{backend}-{checkpointing}"), recipe, 0, model, pairs, reference)
        assert "spin_tree" not in (new.path / "config.json").read_text()
        runs.append(steps(new))
    assert len(runs[0]) == 5
    assert runs[0][-1]["loss"] < runs[0][0]["loss"] - 0.02
    for packed, trl, *others in zip(*runs, strict=True):
        assert set(packed) == set(trl)
        for name in (
            "loss",
            "grad_norm",
            "learning_rate",
            "rewards/real",
            "logratio/real",
            "rewards/generated",
            "rewards/margins",
            "rewards/accuracies",
            "logps/real",
        ):
            assert packed[name] == pytest.approx(trl[name], rel=1e-4, abs=1e-4), name
        assert all(packed["loss"] == pytest.approx(other["loss"], rel=1e-4) for other in others)


def test_the_sft_term_holds_the_human_answers_up(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path) -> None:
    """With it, the loss starts at ln 2 + w·NLL a token, and the human answers' log-probs end higher."""
    store, model, pairs, reference = world
    plain, held = (
        steps(finetune(store, recipe_for(tiny_model, epochs=3, sft_weight=weight), 0, model, pairs, reference)) for weight in (0.0, 1.0)
    )
    assert held[0]["loss"] > plain[0]["loss"] + 1.0
    assert held[-1]["logps/real"] > plain[-1]["logps/real"]


def test_a_foreign_reference_stops_the_run(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path) -> None:
    """The step-0 check is what finds a wrong reference, mask or template; without it training silently learns nonsense."""
    store, model, pairs, reference = world

    def write(staging: Path) -> None:
        found = read_scores(reference.path / "scores.parquet", pairs.path / TRAIN_FILE)
        ids = pq.read_table(pairs.path / TRAIN_FILE, columns=IDS)
        changed = [*ids.columns, pc.add(found["real_logp"], 3.0), found["generated_logp"], pa.nulls(len(ids), pa.int32())]
        pq.write_table(pa.table(changed, schema=SHARD_SCORES), staging / "shard")
        join_shards([staging / "shard"], staging / "scores.parquet")
        shutil.copy(reference.path / "beta.json", staging)

    wrong = store.build(Spec("reference", 1, {"wrong": True}), write)
    with pytest.raises(SpinflowError, match="step-0 check failed"):
        finetune(store, recipe_for(tiny_model), 0, model, pairs, wrong)
    assert not [p for p in (store.home / ".staging").iterdir()]


def test_a_killed_run_continues_as_if_nothing_had_happened(world: tuple[Store, Ref, Ref, Ref], tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL after some checkpoint, then again: the losses are those of a run that was never killed."""
    _, model, pairs, reference = world
    recipe = recipe_for(tiny_model, epochs=20, save_steps=10, warmup_ratio=0.25)  # the kill is after the peak
    whole = steps(finetune(Store(tmp_path / "whole"), recipe, 0, model, pairs, reference))
    store = Store(tmp_path / "killed")
    with killed_at(15):
        finetune(store, recipe, 0, model, pairs, reference)
    (work,) = (store.home / "work").iterdir()
    (metrics,) = work.rglob("metrics.jsonl")
    metrics.write_text(metrics.read_text() + '{"step": 16, "lo')
    resumed = steps(finetune(store, recipe, 0, model, pairs, reference))
    assert [line["step"] for line in resumed] == list(range(1, 51))
    for one, other in zip(whole, resumed, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert other["learning_rate"] == one["learning_rate"] > 0.0
    assert not list((store.home / "work").iterdir())
