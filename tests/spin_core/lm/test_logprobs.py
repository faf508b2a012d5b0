"""Answer log-probs against full logits of one unpadded sequence at a time, over architectures that alter their logits."""

from unittest.mock import Mock

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
)

from spin_core.lm import logprobs
from spin_core.lm.logprobs import answer_logps, collate
from spin_core.training.job import without_dropout

PROMPTS, ANSWERS = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14, 2]]
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL_GPT2 = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)


def full_logits_logps(model: torch.nn.Module) -> torch.Tensor:
    found = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        logp_TV = model(input_ids=torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
        found.append(torch.stack([logp_TV[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]).sum())
    return torch.stack(found)


@pytest.mark.parametrize("kept", [1, 3])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        SMALL_GPT2,
        Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=0.3),
        GraniteConfig(**SIZES, logits_scaling=8.0),
        CohereConfig(**SIZES, logit_scale=0.0625),
        HyperCLOVAXConfig(**SIZES, logits_scaling=0.125),
        OPTConfig(**SIZES, word_embed_proj_dim=16, ffn_dim=64, max_position_embeddings=64),
    ],
    ids=lambda config: config.model_type,
)
def test_padded_chunked_batch_equals_full_logits(config: PretrainedConfig, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_HEAD_CHUNK", 3)  # 7 answer tokens, 3 chunks: one holds tokens of both sequences
    monkeypatch.setattr(logprobs, "_KEPT_BYTES", kept * 3 * 4 * config.vocab_size)
    head_passes = Mock(wraps=logprobs.functional.cross_entropy)
    monkeypatch.setattr(logprobs.functional, "cross_entropy", head_passes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5.0)  # random initial logits are too flat to tell scaled ones from plain ones
    gradients = []
    values = []
    for logp_B in (answer_logps(model, collate(PROMPTS, ANSWERS)), full_logits_logps(model)):
        model.zero_grad()
        logp_B.sum().backward()
        values.append(logp_B.tolist())
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-4
    assert head_passes.call_count == 3 + (3 - kept)  # what was not kept is recomputed


def test_dropout_is_off_in_training(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(tmp_path_factory.mktemp("gpt2"))
    AutoModelForCausalLM.from_config(SMALL_GPT2).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, config=without_dropout(folder)).train()
    with torch.no_grad():
        first, second = (answer_logps(model, collate(PROMPTS, ANSWERS)) for _ in range(2))
    assert torch.equal(first, second)
