"""The variable-length path without a GPU: its sequences, its place in the model, and the check that guards it.

The kernel itself runs on CUDA only. A stand-in with its contract (bottom-right causal, one sequence after another) takes its place.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spin_core.errors import BadInput
from spin_core.training import attention
from spin_core.training.logprobs import answer_logps, choose_layout
from spin_core.training.packing import ATTENTION
from tests.spin_core.training.test_packing import CONFIGS, HARD, model_of


def stand_in(query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, *longest: int, **options: Any) -> Tensor:
    """`varlen_attn` one sequence at a time, by SDPA with an explicit mask."""
    assert options["window_size"] == (-1, 0)
    sizes = query_ends.diff(), key_ends.diff()
    assert tuple(int(size.max()) for size in sizes) == longest
    parts = []
    for q, k, v in zip(*(x.split(size.tolist()) for x, size in ((query, sizes[0]), (key, sizes[1]), (value, sizes[1]))), strict=True):
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        heads = [x.transpose(0, 1)[None] for x in (q, k, v)]
        out = functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=options["scale"], enable_gqa=options["enable_gqa"])
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def test_sequences_say_what_each_block_sees() -> None:
    """A prompt of 3 with answers of 2 and 1, then a prompt of 2: keys of an answer begin with its prompt's."""
    found = attention.sequences([(0, 0, 3, 3), (0, 3, 5, 3), (0, 5, 6, 3), (6, 6, 8, 2)], torch.device("cpu"))
    assert found.key_K.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert found.query_ends.tolist() == [0, 3, 5, 6, 8]
    assert found.key_ends.tolist() == [0, 3, 8, 12, 14]
    assert (found.longest_query, found.longest_key) == (3, 5)
    assert found.query_ends.dtype == torch.int32


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "granite", "gemma"])
def test_sequences_give_the_log_probs_and_gradients_of_blocks(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong keys or ends would train on another model's log-probs; only the kernel is not the real one here."""
    monkeypatch.setattr(attention, "varlen_attn", stand_in)
    model: Any = model_of(model_type)
    batch = choose_layout(model)([list(p) for p, _ in HARD], [list(a) for _, a in HARD])
    found = []
    for name in (ATTENTION, attention.VARLEN):
        model.set_attn_implementation(name)
        model.zero_grad()
        logp_B = answer_logps(model, batch)
        logp_B.sum().backward()
        found.append((logp_B.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert (found[0][1] - found[1][1]).norm() / found[0][1].norm() < 1e-4


def test_right_kernels_are_taken_and_wrong_ones_are_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Top-left causal is what older flash attention does with fewer queries than keys: every answer would see too little."""

    def top_left(query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, *rest: Any, **options: Any) -> Tensor:
        parts = []
        bounds = [ends.tolist() for ends in (query_ends, key_ends)]
        for q0, q1, k0, k1 in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False):
            heads = [x.transpose(0, 1)[None] for x in (query[q0:q1], key[k0:k1], value[k0:k1])]
            out = functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=options["enable_gqa"])
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)

    cpu = torch.device("cpu")
    monkeypatch.setattr(attention, "varlen_attn", stand_in)
    assert attention.disagreement(CONFIGS["llama"], cpu) is None
    model: Any = model_of("llama")
    attention.set_attention(model, "varlen", bf16=True)
    assert model.config._attn_implementation == attention.VARLEN
    monkeypatch.setattr(attention, "varlen_attn", top_left)
    assert "output is off by" in str(attention.disagreement(CONFIGS["llama"], cpu))
    with pytest.raises(BadInput, match="attention=varlen does not work here: output is off"):
        attention.set_attention(model, "varlen", bf16=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(attention, "disagreement", lambda config, device: "no kernel")
    attention.set_attention(model, "auto", bf16=True)
    assert model.config._attn_implementation == ATTENTION
    assert "block by block, since varlen does not work here: no kernel" in capsys.readouterr().out


def test_the_real_kernel_is_refused_without_a_gpu() -> None:
    """What it says is a line about the device, not a traceback."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BadInput, match=r"training.attention=varlen does not work here: .*CPU") as caught:
        attention.set_attention(model_of("llama"), "varlen", bf16=True)
    assert "\n" not in str(caught.value)
