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

from bench.kinds import config_of, model_of
from spin_core.lm import attention, kernels
from spin_core.lm.blocks import ATTENTION
from spin_core.lm.kernels import KERNELS
from spin_core.lm.logprobs import answer_logps
from spin_core.lm.packing import pack
from spin_core.runtime.errors import BadInput
from tests.spin_core.lm.test_packing import HARD, LONG

CPU = torch.device("cpu")
Kernel = Callable[..., Tensor]


def one_by_one(own: Callable[[list[Tensor]], Tensor], query: Tensor, key: Tensor, value: Tensor, *bounds: Any) -> Tensor:
    """Attention of one sequence after another."""
    sizes = bounds[0].diff(), bounds[1].diff()
    assert tuple(int(size.max()) for size in sizes) == bounds[2:]
    split = (x.split(size.tolist()) for x, size in ((query, sizes[0]), (key, sizes[1]), (value, sizes[1])))
    return torch.cat([own([x.transpose(0, 1)[None] for x in heads])[0].transpose(0, 1) for heads in zip(*split, strict=True)])


def bottom_right(scale: float | None, window: tuple[int, int], softcap: float = 0.0) -> Callable[[list[Tensor]], Tensor]:
    """The contract of flash attention: the last query sees the last key; `window` counts the keys before a query's own, −1 is all."""
    assert window[1] == 0

    def own(heads: list[Tensor]) -> Tensor:
        query, key, value = heads
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * (scale or query.shape[-1] ** -0.5)
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        place = torch.arange(query.shape[2])[:, None] + key.shape[2] - query.shape[2]
        before = place - torch.arange(key.shape[2])[None]
        unseen = (before < 0) | ((before > window[0]) if window[0] >= 0 else False)
        return scores.masked_fill(unseen, -torch.inf).softmax(-1) @ value

    return own


def varlen(*arguments: Any, scale: float | None, window_size: tuple[int, int], enable_gqa: bool) -> Tensor:
    assert enable_gqa == (arguments[0].shape[1] != arguments[1].shape[1])
    return one_by_one(bottom_right(scale, window_size), *arguments)


def flash(*arguments: Any, softmax_scale: float | None, causal: bool, window_size: tuple[int, int], softcap: float) -> Tensor:
    assert causal
    return one_by_one(bottom_right(softmax_scale, window_size, softcap), *arguments)


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


WINDOWED = ["llama", "qwen3", "granite", "gemma", "mistral window 1", "mistral window 3", "qwen2 window", "gemma3 window 8"]
KERNEL_KINDS = [*(("varlen", name) for name in WINDOWED if "gemma3" not in name), *(("flash", name) for name in (*WINDOWED, "gemma2"))]
BATCH = pack(*([list(sequence[part]) for sequence in (*HARD, *LONG)] for part in (0, 1)))


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    ("kernel", "name"), [("varlen", n) for n in WINDOWED if "gemma3" not in n] + [("flash", n) for n in (*WINDOWED, "gemma2")]
)
def test_sequences_give_the_log_probs_and_gradients_of_blocks(kernel: str, name: str) -> None:
    """Wrong keys, ends or windows would train on another model's log-probs; only the kernel is not the real one here."""
    model: Any = model_of(name)
    found = []
    for implementation in (ATTENTION, KERNELS[kernel]):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        logp_B = answer_logps(model, BATCH)
        logp_B.sum().backward()
        found.append((logp_B.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert (found[0][1] - found[1][1]).norm() / found[0][1].norm() < 1e-4


@pytest.mark.parametrize("name", [*WINDOWED, "gemma2"])
def test_flex_attention_gives_the_log_probs_of_blocks(name: str) -> None:
    model: Any = model_of(name)
    with torch.no_grad():
        model.set_attn_implementation(ATTENTION)
        right = answer_logps(model, BATCH)
        model.set_attn_implementation(KERNELS["flex"])
        assert torch.allclose(answer_logps(model, BATCH), right, atol=1e-5)


@pytest.mark.usefixtures("stand_ins")
def test_a_kernel_is_tried_with_the_windows_and_the_soft_cap_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is right for a Llama can leave out what another model needs."""
    assert attention.disagreement("flash", config_of("gemma2"), CPU, torch.bfloat16) is None
    assert "no soft cap" in str(attention.disagreement("varlen", config_of("gemma2"), CPU, torch.bfloat16))

    def unwindowed(*arguments: Any, scale: float | None, window_size: tuple[int, int], enable_gqa: bool) -> Tensor:
        return one_by_one(bottom_right(scale, (-1, 0)), *arguments)

    monkeypatch.setattr(kernels, "varlen_attn", unwindowed)
    assert attention.disagreement("varlen", config_of("llama"), CPU, torch.bfloat16) is None
    assert "in windows" in str(attention.disagreement("varlen", config_of("mistral window 3"), CPU, torch.bfloat16))


@pytest.mark.usefixtures("stand_ins")
def test_right_kernels_are_taken_and_wrong_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-left causal is what older flash attention does with fewer queries than keys: every answer would see too little."""

    def top_left(*arguments: Any, **options: Any) -> Tensor:
        return one_by_one(lambda heads: functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True), *arguments)

    model: Any = model_of("llama")
    for name in ("varlen", "flash"):
        assert attention.disagreement(name, config_of("llama"), CPU, torch.bfloat16) is None
        attention.set_attention(model, name, bf16=True)
        assert model.config._attn_implementation == KERNELS[name]
    monkeypatch.setattr(kernels, "varlen_attn", top_left)
    assert "output is off by" in str(attention.disagreement("varlen", config_of("llama"), CPU, torch.bfloat16))
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
