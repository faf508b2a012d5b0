"""The packed layout against full logits of one unpadded sequence at a time."""

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from spin_core.lm.logprobs import answer_logps, choose_layout, collate
from spin_core.lm.packing import PACKED_ARCHITECTURES, can_pack, pack

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    config.model_type: config
    for config in (
        LlamaConfig(**SIZES),
        MistralConfig(**SIZES, sliding_window=None),
        Qwen2Config(**SIZES),
        Qwen3Config(**SIZES, head_dim=16),
        GemmaConfig(**SIZES, head_dim=16),
        GraniteConfig(**SIZES, logits_scaling=8.0, attention_multiplier=0.2),
        CohereConfig(**SIZES, logit_scale=0.0625),
    )
}
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


@functools.cache
def model_of(model_type: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[model_type]).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)  # random initial attention is so flat that a wrong mask would hardly show
    return model


def one_by_one(model: Any, sequences: Sequences) -> torch.Tensor:
    model.set_attn_implementation("eager")
    found = []
    for prompt, answer in sequences:
        logp_TV = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        found.append(torch.stack([logp_TV[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]).sum())
    return torch.stack(found)


def packed(model: Any, sequences: Sequences) -> torch.Tensor:
    layout = choose_layout(model)
    assert layout is pack
    return answer_logps(model, layout([p for p, _ in sequences], [a for _, a in sequences]))


def gradient(model: Any, logp_B: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    (logp_B * torch.linspace(0.5, -1.5, len(logp_B))).sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def assert_exact(model_type: str, sequences: Sequences) -> None:
    model = model_of(model_type)
    expected, found = one_by_one(model, sequences), packed(model, sequences)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)
    wanted = gradient(model, expected)
    assert (gradient(model, found) - wanted).norm() <= 1e-4 * wanted.norm()


def test_every_listed_architecture_is_proven_here() -> None:
    assert sorted(CONFIGS) == sorted(PACKED_ARCHITECTURES)
    assert all(map(can_pack, CONFIGS.values()))


@pytest.mark.parametrize("model_type", CONFIGS)
def test_packed_equals_one_sequence_at_a_time(model_type: str) -> None:
    """If it fails, training optimises another quantity than SPIN's, silently."""
    assert_exact(model_type, HARD)


tokens = st.integers(3, 98)
prompts = st.lists(tokens, min_size=1, max_size=12)
answers = st.lists(tokens, min_size=1, max_size=9)
trees = st.lists(st.tuples(prompts, st.lists(answers, min_size=1, max_size=4)), min_size=1, max_size=4)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@settings(max_examples=12, deadline=None)
@given(drawn=trees)
def test_packed_equals_one_sequence_at_a_time_at_random_lengths(model_type: str, drawn: list[tuple[list[int], list[list[int]]]]) -> None:
    assert_exact(model_type, [(prompt, answer) for prompt, answers in drawn for answer in answers])


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


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=64),
        Gemma2Config(**SIZES, head_dim=16),
        MistralConfig(**SIZES, sliding_window=4),
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=0),
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
    ],
    ids=["gpt2", "gemma2", "mistral-window", "qwen2-window", "dynamic-rope"],
)
def test_what_is_not_proven_is_padded(config: PretrainedConfig) -> None:
    assert choose_layout(AutoModelForCausalLM.from_config(config)) is collate
