"""An answer's random numbers are its own: whatever is sampled beside it, before it or on another engine, it stays the same."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Prompt
from spin_core.generation.sampling import generation_options, seed_of
from spin_core.generation.transformers_engine import _work
from spin_core.generation.vllm_server import _environment, engine_arguments
from spin_core.recipe import GenerationSettings
from spin_core.runtime.errors import BadInput

ENDS = Ends([2], ["<|im_end|>"], 2)


def sampled(model: Path, prompts: list[Prompt], out: Path, temperature: float = 1.0, top_p: float = 1.0) -> list[dict[str, Any]]:
    job = {"model": str(model), "prompts": list(map(asdict, prompts)), "out": str(out), "temperature": temperature, "top_p": top_p}
    _work(job | {"options": generation_options(GenerationSettings(max_new_tokens=12), ENDS)})
    answers: list[dict[str, Any]] = json.loads(out.read_text())
    return answers


def test_shards_and_their_order_change_no_answer(tiny_model: Path, tmp_path: Path) -> None:
    """Otherwise two runs of a recipe that differ in `shard_rows`, or in which engine was free, would train on different data."""
    rng = random.Random(0)
    prompts = [Prompt([rng.randrange(3, 250) for _ in range(rng.randrange(1, 20))], seed_of(0, f"{n:016x}", 1)) for n in range(70)]
    whole = [answer["ids"] for answer in sampled(tiny_model, prompts, tmp_path / "whole")]
    cut = [answer["ids"] for start in range(0, 70, 7) for answer in sampled(tiny_model, prompts[start : start + 7], tmp_path / "cut")]
    turned = [answer["ids"] for answer in sampled(tiny_model, prompts[::-1], tmp_path / "turned")][::-1]
    assert whole == cut == turned
    assert len({tuple(ids) for ids in whole}) > 60


def test_samples_of_a_prompt_are_drawn_from_seeds_side_by_side(tiny_model: Path, tmp_path: Path) -> None:
    """As vLLM has it, so that every engine gives sample k the same seed."""
    several = sampled(tiny_model, [Prompt([5, 6], 40, samples=3), Prompt([7], 90, samples=3)], tmp_path / "several")
    single = sampled(tiny_model, [Prompt([5, 6], 40 + k) for k in range(3)] + [Prompt([7], 90 + k) for k in range(3)], tmp_path / "single")
    assert several == single
    assert len({tuple(answer["ids"]) for answer in several}) == 6


def test_the_log_prob_of_an_answer_is_the_models_own(tiny_model: Path, tmp_path: Path) -> None:
    """At temperature 1, whatever it was sampled at, and over the very tokens that are kept."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    answers = sampled(tiny_model, [Prompt([5, 6, 7], 1, 4, logp=True), Prompt([9], 2)], tmp_path / "out", temperature=0.7, top_p=0.9)
    for answer in answers[:4]:
        with torch.no_grad():
            logits_TV = model(torch.tensor([[5, 6, 7, *answer["ids"]]])).logits[0, 2:-1]
        logp = logits_TV.log_softmax(-1).gather(1, torch.tensor(answer["ids"])[:, None]).sum()
        assert answer["logp"] == pytest.approx(float(logp), abs=1e-3)
    assert answers[4]["logp"] is None


def test_what_is_drawn_is_the_models_distribution(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        chance_V = model(torch.tensor([[5]])).logits[0, -1].softmax(-1)
    answers = sampled(tiny_model, [Prompt([5], 1000 * n, 64) for n in range(30)], tmp_path / "answers")
    first = torch.tensor([answer["ids"][0] for answer in answers])
    upper_half = chance_V.argsort(descending=True)[: len(chance_V) // 2]
    share = torch.isin(first, upper_half).float().mean()
    assert float(share) == pytest.approx(float(chance_V[upper_half].sum()), abs=0.045)  # four standard errors


@given(st.integers(0, 2**70), st.text("0123456789abcdef", min_size=16, max_size=16), st.integers(0, 9))
def test_a_seed_has_room_for_its_samples(seed: int, row_id: str, player: int) -> None:
    """vLLM takes 63 bits; and the opponent of a turn is the new player of the turn before, under the same seeds."""
    found = seed_of(seed, row_id, player)
    assert 0 <= found < 2**62
    assert found == seed_of(seed, row_id, player)
    assert len({found, seed_of(seed + 1, row_id, player), seed_of(seed, row_id, player + 1)}) == 3


def test_our_servers_on_a_cpu_never_chunk_a_prefill() -> None:
    """They would rewind the generator of its request, which a CPU's cannot, and die; whatever the recipe's engine_args say."""
    settings = GenerationSettings(engine_args={"enable_chunked_prefill": True, "max_num_batched_tokens": 16})
    arguments = engine_arguments(300, (), settings)
    assert arguments.index("--no-enable-chunked-prefill") > arguments.index("--enable-chunked-prefill")
    assert arguments[-2:] == ["--max-num-batched-tokens", "300"]


def test_batch_invariance_is_refused_where_there_is_none() -> None:
    """It would be a key that promises and does nothing."""
    with pytest.raises(ValueError, match="batch_invariant works with engine: vllm, not transformers"):
        GenerationSettings(engine="transformers", batch_invariant=True)
    settings = GenerationSettings(batch_invariant=True)
    with pytest.raises(BadInput, match="batch_invariant needs a GPU"):
        _environment((), settings)
    assert _environment((), GenerationSettings())["VLLM_BATCH_INVARIANT"] == "0"
