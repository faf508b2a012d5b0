"""A real vLLM server that takes its defaults from the worst generation_config.json there is samples the model's own distribution,
and the same answers again."""

import json
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from spin_core.encoding.ends import Ends
from spin_core.generation.client import Client
from spin_core.generation.engine import Prompt
from spin_core.recipe import GenerationSettings
from spin_core.runtime import process
from tests.integration.test_endpoints import KEY, Server, free_port
from tests.tiny import make_model

END, A, B = 2, 40, 41
NEXT = {A: {A: 0.7, B: 0.2, END: 0.1}, B: {A: 0.5, B: 0.4, END: 0.1}}  # P(next token | token)
HOSTILE = {"do_sample": True, "top_k": 1, "repetition_penalty": 1.9, "temperature": 0.2, "min_p": 0.5, "max_new_tokens": 5}


def make_bigram_model(folder: Path) -> None:
    """A Llama whose layers add nothing: its next-token probabilities are exactly `NEXT`, by the last token alone."""
    import torch
    from transformers import AutoModelForCausalLM

    make_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    scale = model.config.hidden_size**0.5  # of a unit vector after the norm
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.fill_(-50.0 / scale)
        for axis, (token, chances) in enumerate(NEXT.items()):
            model.model.embed_tokens.weight[token, axis] = 1.0
            for following, chance in chances.items():
                model.lm_head.weight[following, axis] = torch.tensor(chance).log() / scale
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(HOSTILE | {"eos_token_id": [B, END]}))


class CarelessServer(Server):
    """Started without --generation-config vllm."""

    def __init__(self, folder: Path, port: int, log: Path) -> None:
        self.folder, self.port, self.log = folder, port, log
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "ours"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "64", "--dtype", "float32", "--enforce-eager"]
        env = {"VLLM_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self.child = process.spawn(command, log, env | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"})


def _reproduced(client: Client) -> dict[str, list[tuple[int, ...]]]:
    """Ids of the same twelve requests one at a time, together, and together in another order; and four of them as samples."""
    prompts = [Prompt([A, B, A][: 1 + seed % 3] if seed > 3 else [A], 2**61 + seed) for seed in range(12)]

    def sample(asked: list[Prompt]) -> list[tuple[int, ...]]:
        return [tuple(answer.ids) for answer in client.sample(asked, Ends([END], ["<|im_end|>"], END), lambda done, tokens: None)]

    alone = [sample([prompt])[0] for prompt in prompts]
    several = sample([Prompt([A], 2**61, samples=4), Prompt([A], 2**61, samples=4, logp=True)])
    return {"alone": alone, "batched": sample(prompts), "turned": sample(prompts[::-1])[::-1], "samples": several}


def _by_default(server: Server) -> tuple[int, ...]:
    """The answer to a request that says nothing of sampling."""
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "ours", "prompt": [A], "return_token_ids": True}
    response = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60.0, trust_env=False)
    return tuple(response.json()["choices"][0]["token_ids"])


@pytest.mark.long
@pytest.mark.engine
def test_the_models_folder_does_not_change_what_a_server_samples(tmp_path: Path) -> None:
    """Its top_k would leave one token, its penalty would seldom say one twice, and its EOS would end answers at B."""
    make_bigram_model(tmp_path / "model")
    server = CarelessServer(tmp_path / "model", free_port(), tmp_path / "server.log")
    try:
        server.wait_until_up()
        client = Client(server.url, "ours", GenerationSettings(max_new_tokens=40), KEY)
        answers = client.sample([Prompt([A], seed) for seed in range(800)], Ends([END], ["<|im_end|>"], END), lambda done, tokens: None)
        again = _reproduced(client)
        by_default = [_by_default(server) for _ in range(6)]
    finally:
        process.end(server.child)
    assert again["alone"] == again["batched"] == again["turned"]
    assert len(set(again["batched"])) > 8
    assert again["samples"] == again["batched"][:4] * 2  # sample k of a prompt is what its seed + k gives alone
    assert len(set(by_default)) == 1, "the server's defaults are harmless: nothing is shown"
    seen: dict[int, Counter[int]] = {A: Counter(), B: Counter()}
    for answer in answers:
        assert (answer.finish_reason == "stop") == (answer.ids[-1] == END)
        assert END not in answer.ids[:-1]
        assert "<|im_end|>" not in answer.text
        assert answer.finish_reason == "stop" or len(answer.ids) == 40
        for token, following in zip([A, *answer.ids], answer.ids, strict=False):
            seen[token][following] += 1
    for token, chances in NEXT.items():
        total = sum(seen[token].values())
        assert total > 1500
        for following, chance in chances.items():
            assert seen[token][following] / total == pytest.approx(chance, abs=0.04)  # three standard errors and more
