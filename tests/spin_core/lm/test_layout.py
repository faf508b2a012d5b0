"""Which step a model gets, and the proof of it on the run's own rows when it is loaded."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, PretrainedConfig

from bench.kinds import KINDS, SIZES, config_of, model_of
from bench.sweep import examine, make_pairs, off, one_by_one, sequences_of
from spin_core.lm import layout
from spin_core.lm.attention import set_plain_attention
from spin_core.lm.blocks import ATTENTION
from spin_core.lm.layout import Step, choose_layout, step_of
from spin_core.lm.logprobs import answer_logps, collate
from spin_core.lm.packing import pack
from spin_core.runtime.errors import BadInput

ZEPHYR = {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}  # as in its config.json
PACKED, PADDED = Step(True, ""), Step(False, "")


@pytest.mark.parametrize(
    ("config", "longest", "packed", "why"),
    [
        (LlamaConfig(), 4000, True, "packed: proven for llama"),
        (MistralConfig(**ZEPHYR), 768, True, "packed: windows of 4,096 never bind (longest prompt + answer 768)"),
        (MistralConfig(**ZEPHYR), 4096, True, "packed: windows of 4,096 never bind (longest prompt + answer 4,096)"),
        (MistralConfig(**ZEPHYR), 5000, True, "packed: attention in windows of 4,096 (longest prompt + answer 5,000)"),
        (config_of("qwen2"), 20, True, "packed: proven for qwen2"),
        (config_of("qwen2 window"), 20, True, "packed: attention in windows of 3 (longest prompt + answer 20)"),
        (config_of("phi3 longrope, short"), 32, True, "packed: proven for phi3"),
        (config_of("mixtral"), 20, False, "padded, TRL's step: packing is not proven for mixtral"),
        (config_of("mamba"), 20, False, "padded, TRL's step: packing is not proven for mamba"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PretrainedConfig) else str(value)[:12],
)
def test_a_step_and_its_reason(config: PretrainedConfig, longest: int, packed: bool, why: str) -> None:
    """The paper's own model must not fall to the slow step for a window that no sequence reaches."""
    assert step_of(config, longest) == Step(packed, why)
    assert step_of(config, longest, "trl") == Step(False, "padded, TRL's step: training.backend=trl")


@pytest.mark.parametrize(("name", "limit"), [("llama dynamic rope", 8), ("phi3 longrope", 8), ("phi3 longrope, short", 32)])
@pytest.mark.parametrize("backend", ["packed", "trl"])
def test_frequencies_that_depend_on_the_batch_are_refused(name: str, limit: int, backend: str) -> None:
    """Such a sequence's log-prob changes with its neighbours, so no reference can be right."""
    step_of(config_of(name), limit, backend)
    with pytest.raises(
        BadInput, match=rf"^{KINDS[name][0]}: its rotary frequencies .* more than {limit} tokens; .* has {limit + 1}; lower"
    ):
        step_of(config_of(name), limit + 1, backend)


@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma", "bloom", "llama4", "nemotron"])
def test_what_cannot_be_packed_would_be_caught(name: str) -> None:
    """The list of architectures is ours; were one wrongly on it, no run may train on what follows."""
    with pytest.raises(BadInput, match=rf"^{KINDS[name][0]}: log-probs are not those of its own .*; set training.backend=trl"):
        choose_layout(model_of(name), PACKED, make_pairs())


@pytest.mark.parametrize("name", ["falcon_h1", "recurrent_gemma", "mamba", "mixtral", "opt", "llama4", "deepseek_v3", "qwen3_next"])
def test_what_is_not_packed_is_exact_when_padded_and_in_trls_forward(name: str) -> None:
    found = examine(name)
    assert (found["layout"], found["ok"]) == ("padded", True), found


def test_a_model_that_looks_ahead_is_named() -> None:
    with pytest.raises(BadInput, match=r"^bert: log-probs are not those of its own forward pass: off by .* nats; take a model of another"):
        choose_layout(model_of("bert"), PADDED, make_pairs())


@pytest.mark.parametrize("step", [PACKED, PADDED], ids=["packed", "padded"])
def test_logits_that_are_changed_after_the_head_in_a_way_of_its_own(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """No list of config names holds it: whatever the model's own forward pass does counts."""
    model: Any = model_of("llama")
    whole = type(model).forward

    def shifted(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = whole(self, *args, **kwargs)
        out.logits = out.logits * 0.3 + torch.linspace(-1.0, 1.0, out.logits.shape[-1])
        return out

    before = model_of("llama")
    monkeypatch.setattr(type(model), "forward", shifted)
    prompts, answers = sequences_of(make_pairs())
    with torch.no_grad():
        right = one_by_one(model, prompts, answers)
        found = answer_logps(model, choose_layout(model, step, make_pairs())(prompts, answers))
        monkeypatch.undo()
        assert off(found, right) < 1e-5
        assert off(one_by_one(before, prompts, answers), right) > 1e-2


def test_a_head_that_cannot_be_followed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded log-probs too are proven when a model is loaded, not found wrong at step 0."""
    monkeypatch.setattr(layout, "answer_logps", lambda model, batch: answer_logps(model, batch) + 0.1)
    for step in (PACKED, PADDED):
        with pytest.raises(BadInput, match=r"^llama: .*off by 0\.1 nats"):
            choose_layout(model_of("llama"), step, make_pairs())


def test_soft_caps_are_not_lost() -> None:
    """transformers' default attention leaves them out: gemma-2 would be scored and trained as another model than is sampled."""
    config = Gemma2Config(**SIZES, head_dim=8, attn_logit_softcapping=0.5, initializer_range=0.5)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    prompts, answers = sequences_of(make_pairs())
    found = {}
    with torch.no_grad():
        found["lost"] = one_by_one(model, prompts, answers)
        model.set_attn_implementation("eager")
        right = one_by_one(model, prompts, answers)
        model.set_attn_implementation(ATTENTION)
        found["packed"] = answer_logps(model, pack(prompts, answers))
        model.set_attn_implementation("sdpa")
        set_plain_attention(model)
        found["padded"] = answer_logps(model, collate(prompts, answers))
    assert off(found["lost"], right) > 1e-2
    assert off(found["packed"], right) < 1e-5
    assert off(found["padded"], right) < 1e-5
