"""The packed layout against full logits of one unpadded sequence at a time."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kinds import KINDS, REFUSED, model_of
from bench.sweep import gradient, one_by_one
from spin_core.lm.blocks import ATTENTION
from spin_core.lm.layout import PACKED_ARCHITECTURES
from spin_core.lm.logprobs import answer_logps
from spin_core.lm.packing import pack

PACKED = [name for name, (model_type, _) in KINDS.items() if model_type in PACKED_ARCHITECTURES and name not in REFUSED]
Sequences = list[tuple[list[int], list[int]]]
# one-token prompt and answers, an answer that is a prefix of another, one prompt that is a prefix of another, a repeated answer
HARD: Sequences = [
    ([8], [9]),
    ([8], [9, 10, 11, 12]),
    ([8], [9, 10]),
    ([8, 9], [3]),
    ([5, 6, 7], [11, 12, 13, 14, 2]),
    ([8], [9]),
]
# longer than windows of 3 and of 8: prompt, answers, both together
LONG: Sequences = [
    (list(range(20, 32)), list(range(40, 52))),
    (list(range(20, 32)), [33]),
    (list(range(20, 32)), [33, 34, 35, 36, 37]),
    ([60, 61, 62, 63], list(range(70, 81))),
]


def packed(model: Any, sequences: Sequences) -> torch.Tensor:
    model.set_attn_implementation(ATTENTION)
    return answer_logps(model, pack([p for p, _ in sequences], [a for _, a in sequences]))


def assert_exact(name: str, sequences: Sequences) -> None:
    model = model_of(name)
    model.set_attn_implementation("eager")  # SDPA leaves soft caps out
    expected = one_by_one(model, [p for p, _ in sequences], [a for _, a in sequences])
    found = packed(model, sequences)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)
    wanted = gradient(model, expected)
    assert (gradient(model, found) - wanted).norm() <= 1e-4 * wanted.norm()


def test_every_listed_architecture_is_proven_here() -> None:
    assert {KINDS[name][0] for name in PACKED} == set(PACKED_ARCHITECTURES)


@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_one_sequence_at_a_time(name: str) -> None:
    """If it fails, training optimises another quantity than SPIN's, silently."""
    assert_exact(name, [*HARD, *LONG])


tokens = st.integers(3, 98)
prompts = st.lists(tokens, min_size=1, max_size=12)
answers = st.lists(tokens, min_size=1, max_size=9)
trees = st.lists(st.tuples(prompts, st.lists(answers, min_size=1, max_size=4)), min_size=1, max_size=4)


@pytest.mark.parametrize("name", ["llama", "mistral window 3", "gemma2", "qwen3"])
@settings(max_examples=12, deadline=None)
@given(drawn=trees)
def test_packed_equals_one_sequence_at_a_time_at_random_lengths(name: str, drawn: list[tuple[list[int], list[list[int]]]]) -> None:
    assert_exact(name, [(prompt, answer) for prompt, answers in drawn for answer in answers])


def test_a_tree_of_several_generated_answers_equals_separate_pairs() -> None:
    """Pairs that share the prompt and the human answer are one tree; losses and gradients must stay those of the pairs."""
    model = model_of("llama")
    prompt, real, generated = [5, 6, 7, 8], [9, 10, 2], [[9, 11, 12], [30, 31], [9]]
    together = packed(model, [(prompt, real)] * 3 + [(prompt, answer) for answer in generated])
    alone = [packed(model, [(prompt, real), (prompt, answer)]) for answer in generated]
    apart = torch.cat([torch.stack([pair[0] for pair in alone]), torch.stack([pair[1] for pair in alone])])
    assert together.tolist() == pytest.approx(apart.tolist(), rel=1e-5)
    wanted = gradient(model, apart)
    assert (gradient(model, together) - wanted).norm() <= 1e-4 * wanted.norm()


def test_no_branch_influences_another() -> None:
    """Changing the tokens of one sequence must leave every other log-prob as it is, and change its own."""
    model = model_of("qwen2")
    sequences: Sequences = [([5, 6, 7], [20, 21, 22]), ([5, 6, 7], [30, 31, 32, 33]), ([40, 41], [42, 43, 44]), ([50], [51, 52])]
    with torch.no_grad():
        before = packed(model, sequences)
        for changed, (prompt, answer) in enumerate(sequences):
            others = [i for i in range(len(sequences)) if i != changed]
            new = [*sequences]
            new[changed] = (prompt, [token + 40 for token in answer])
            after = packed(model, new)
            assert after[others].tolist() == pytest.approx(before[others].tolist(), rel=1e-6)
            assert abs(float(after[changed] - before[changed])) > 1e-2


def test_layout_holds_no_padding_and_each_prompt_once() -> None:
    batch = pack([[1, 2, 3]] * 3 + [[4]], [[5, 6], [7], [5, 6], [8, 9, 9]])
    assert batch.ids_T.tolist() == [1, 2, 3, 5, 4, 8, 9]
    assert batch.position_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.source_N.tolist() == [2, 3, 2, 4, 5, 6]
    assert batch.pick_B.tolist() == [0, 1, 0, 2]
