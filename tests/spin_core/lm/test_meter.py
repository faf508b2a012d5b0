"""FLOPs of a model, against numbers that are derived by hand."""

from pathlib import Path

from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from spin_core.lm.meter import Work, cost_of
from spin_core.lm.packing import pack


def test_flops_of_a_small_llama(tiny_model: Path) -> None:
    """If this fails, the MFU that every step logs and the bench claims is wrong, or is not logged at all.

    Two layers, D 64, MLP 128, 2 heads of 32 with as many keys, V 259: 4·64² + 3·64·128 + 2·64 weights a layer, and a norm.
    """
    cost = cost_of(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert cost is not None
    assert cost.token == 6 * (2 * (4 * 64**2 + 3 * 64 * 128 + 2 * 64) + 64)
    assert cost.attended == 12 * 2 * 64
    assert cost.answer == 6 * 64 * 259
    assert cost.flops(Work(tokens=10, attended=0, answers=3)) == 10 * cost.token + 3 * cost.answer


def test_work_of_a_pair() -> None:
    """Prompt of 3, answers of 2 and 4: the last token of an answer is not computed, but each is predicted."""
    work = pack([[5, 6, 7]] * 2, [[8, 9], [10, 11, 12, 13]]).work()
    assert work == Work(tokens=3 + 1 + 3, attended=6 + (3 + 1) + (3 * 3 + 6), answers=6)


def test_experts_are_not_counted() -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=2)
    assert cost_of(MixtralForCausalLM(config)) is None
