"""Attention by CUDA kernels without a GPU: what they are given, their place in the model, and the check that guards them.

The variable-length kernels run on CUDA only: a stand-in with their contract (bottom-right causal, one sequence after another)
takes their place. flex_attention's forward pass is the real one; it has no backward pass on a CPU.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spin_core.lm import attention, kernels
from spin_core.lm.kernels import KERNELS
from spin_core.lm.logprobs import answer_logps, choose_layout
from spin_core.lm.packing import ATTENTION
from spin_core.runtime.errors import BadInput
from tests.spin_core.lm.test_packing import CONFIGS, HARD, model_of

CPU = torch.device("cpu")
Kernel = Callable[..., Tensor]


def one_by_one(own: Callable[[list[Tensor]], Tensor], query: Tensor, key: Tensor, value: Tensor, *bounds: Any) -> Tensor:
    """Attention of one sequence after another."""
    sizes = bounds[0].diff(), bounds[1].diff()
    assert tuple(int(size.max()) for size in sizes) == bounds[2:]
    split = (x.split(size.tolist()) for x, size in ((query, sizes[0]), (key, sizes[1]), (value, sizes[1])))
    return torch.cat([own([x.transpose(0, 1)[None] for x in heads])[0].transpose(0, 1) for heads in zip(*split, strict=True)])


def bottom_right(scale: float | None) -> Callable[[list[Tensor]], Tensor]:
    def own(heads: list[Tensor]) -> Tensor:
        queries, keys = heads[0].shape[2], heads[1].shape[2]
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        return functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=True)

    return own


def varlen(*arguments: Any, scale: float | None, window_size: tuple[int, int], enable_gqa: bool) -> Tensor:
    assert window_size == (-1, 0)
    assert enable_gqa == (arguments[0].shape[1] != arguments[1].shape[1])
    return one_by_one(bottom_right(scale), *arguments)


def flash(*arguments: Any, softmax_scale: float | None, causal: bool) -> Tensor:
    assert causal
    return one_by_one(bottom_right(softmax_scale), *arguments)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "varlen_attn", varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash))


def test_sequences_say_what_each_block_sees() -> None:
    """A prompt of 3 with answers of 2 and 1, then a prompt of 2: keys of an answer begin with its prompt's."""
    found = kernels.sequences([(0, 0, 3, 3), (0, 3, 5, 3), (0, 5, 6, 3), (6, 6, 8, 2)], CPU)
    assert found.key_K.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert found.query_ends.tolist() == [0, 3, 5, 6, 8]
    assert found.key_ends.tolist() == [0, 3, 8, 12, 14]
    assert (found.longest_query, found.longest_key) == (3, 5)
    assert found.query_ends.dtype == torch.int32


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kernel", ["varlen", "flash"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "granite", "gemma"])
def test_sequences_give_the_log_probs_and_gradients_of_blocks(kernel: str, model_type: str) -> None:
    """Wrong keys or ends would train on another model's log-probs; only the kernel is not the real one here."""
    model: Any = model_of(model_type)
    batch = choose_layout(model)([list(p) for p, _ in HARD], [list(a) for _, a in HARD])
    found = []
    for name in (ATTENTION, KERNELS[kernel]):
        model.set_attn_implementation(name)
        model.zero_grad()
        logp_B = answer_logps(model, batch)
        logp_B.sum().backward()
        found.append((logp_B.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert (found[0][1] - found[1][1]).norm() / found[0][1].norm() < 1e-4


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "granite", "gemma"])
def test_flex_attention_gives_the_log_probs_of_blocks(model_type: str) -> None:
    model: Any = model_of(model_type)
    batch = choose_layout(model)([list(p) for p, _ in HARD], [list(a) for _, a in HARD])
    with torch.no_grad():
        right = answer_logps(model, batch)
        model.set_attn_implementation(KERNELS["flex"])
        assert torch.allclose(answer_logps(model, batch), right, atol=1e-5)


@pytest.mark.usefixtures("stand_ins")
def test_right_kernels_are_taken_and_wrong_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-left causal is what older flash attention does with fewer queries than keys: every answer would see too little."""

    def top_left(*arguments: Any, **options: Any) -> Tensor:
        return one_by_one(lambda heads: functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True), *arguments)

    model: Any = model_of("llama")
    for name in ("varlen", "flash"):
        assert attention.disagreement(name, CONFIGS["llama"], CPU, torch.bfloat16) is None
        attention.set_attention(model, name, bf16=True)
        assert model.config._attn_implementation == KERNELS[name]
    monkeypatch.setattr(kernels, "varlen_attn", top_left)
    assert "output is off by" in str(attention.disagreement("varlen", CONFIGS["llama"], CPU, torch.bfloat16))
    with pytest.raises(BadInput, match="attention=varlen does not work here: output is off"):
        attention.set_attention(model, "varlen", bf16=True)


def test_auto_takes_the_first_that_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    right: set[str] = set()
    monkeypatch.setattr(attention, "disagreement", lambda name, *rest: None if name in right else "no kernel")
    model: Any = model_of("llama")
    attention.set_attention(model, "auto", bf16=True)
    assert model.config._attn_implementation == ATTENTION
    assert capsys.readouterr().out.count("does not work here: no kernel") == len(KERNELS)
    right |= {"flash", "flex"}
    attention.set_attention(model, "auto", bf16=True)
    assert model.config._attn_implementation == KERNELS["flash"]
    attention.set_attention(model, "auto", bf16=False)
    assert model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize(("kernel", "why"), [("varlen", "CPU"), ("flash", "flash_attn"), ("flex", "CPU")])
def test_the_real_kernels_are_refused_without_a_gpu(kernel: str, why: str) -> None:
    """What it says is a line about the device, not a traceback."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BadInput, match=rf"training.attention={kernel} does not work here: .*{why}") as caught:
        attention.set_attention(model_of("llama"), kernel, bf16=True)
    assert "\n" not in str(caught.value)
