"""p_θ is the recipe's: neither the model's folder nor a server's defaults change what is sampled."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Prompt
from spin_core.generation.sampling import fault, generation_options, request_fields
from spin_core.generation.transformers_engine import _work
from spin_core.recipe import GenerationSettings

ENDS = Ends([2, 7], ["</s>", "<|eot|>"], 7)
HOSTILE = {"repetition_penalty": 1.9, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "max_tokens": 3}
HOSTILE |= {"presence_penalty": 2.0, "frequency_penalty": 2.0}


def test_a_servers_defaults_change_nothing() -> None:
    """vLLM's own request class, with the defaults of the worst generation_config.json, asks for the recipe's sampling."""
    protocol = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
    settings = GenerationSettings(max_new_tokens=40, temperature=0.7, top_p=0.9)
    body = {"model": "ours", "prompt": [5, 6], **request_fields(settings, ENDS, Prompt([5, 6], 2**61, 3))}
    request = protocol.CompletionRequest(**body)
    assert not request.model_extra, "a field that vLLM does not know"
    asked = request.to_sampling_params(body["max_tokens"], HOSTILE)
    assert asked == request.to_sampling_params(body["max_tokens"], {})
    asked.update_from_generation_config({"eos_token_id": [1, 3]}, 1)
    assert (asked.temperature, asked.top_p, asked.max_tokens, asked.n) == (0.7, 0.9, 40, 3)
    assert (asked.top_k, asked.min_p, asked.repetition_penalty) == (-1, 0.0, 1.0)
    assert (asked.presence_penalty, asked.frequency_penalty, asked.min_tokens, asked.seed) == (0.0, 0.0, 0, 2**61)
    assert (asked.logit_bias, asked.allowed_token_ids, asked.bad_words, asked.stop) == (None, None, [], [])
    assert (sorted(asked.stop_token_ids), asked.eos_token_id) == ([2, 7], None)
    filled = protocol.CompletionRequest.__private_attributes__["_DEFAULT_SAMPLING_PARAMS"].default
    assert all(body[name] is not None for name in filled), "a field that the server would fill"


def test_the_models_generation_config_changes_nothing(tmp_path: Path, tiny_model: Path) -> None:
    """With its top_k of 1 and its minimal length every answer would be the same; with its EOS it would stop elsewhere."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = {"do_sample": True, "top_k": 1, "repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "suppress_tokens": list(range(3, 200))}
    config |= {"eos_token_id": 100, "min_new_tokens": 9, "bad_words_ids": [[210]], "num_beams": 1}
    answers = {}
    for name in ("own", "neutral"):
        if name == "own":
            (folder / "generation_config.json").write_text(json.dumps(config))
        else:
            (folder / "generation_config.json").unlink()
        job: dict[str, Any] = {
            "model": str(folder),
            "prompts": [asdict(Prompt([5, 6, 7], seed)) for seed in range(64)],
            "out": str(tmp_path / name),
        }
        _work(job | {"temperature": 1.0, "top_p": 1.0, "options": generation_options(GenerationSettings(max_new_tokens=12), ENDS)})
        answers[name] = json.loads((tmp_path / name).read_text())
    assert answers["own"] == answers["neutral"]
    assert len({tuple(answer["ids"]) for answer in answers["own"]}) > 32


def test_every_engine_stops_on_the_same_ids(tmp_path: Path, tiny_model: Path) -> None:
    """The transformers engine ends an answer at the first of them, keeps it, and leaves it out of the text."""
    ends = Ends(list(range(2, 60)), [], 2)  # many, so that every answer meets one
    job: dict[str, Any] = {
        "model": str(tiny_model),
        "prompts": [asdict(Prompt(ids, 1)) for ids in [[5, 6, 7], [70]] * 8],
        "out": str(tmp_path / "answers"),
    }
    _work(job | {"temperature": 1.0, "top_p": 1.0, "options": generation_options(GenerationSettings(max_new_tokens=60), ends)})
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for answer in json.loads((tmp_path / "answers").read_text()):
        assert answer["finish_reason"] == "stop"
        assert answer["ids"] == ends.cut(answer["ids"])
        assert answer["text"] == tokenizer.decode(answer["ids"][:-1], skip_special_tokens=True).strip()
    assert set(ends.ids) == set(request_fields(GenerationSettings(), ends, Prompt([5], 0))["stop_token_ids"])


@pytest.mark.parametrize(
    ("ids", "reason", "says"),
    [
        ([5, 7], "stop", None),
        ([5] * 40, "length", None),
        ([5, 2, 5], "length", "it went on after an end of turn"),
        ([5, 6], "stop", "it stopped at token 6, which ends no turn"),
        ([5] * 16, "length", "it cut an answer at 16 tokens, not at generation.max_new_tokens=40"),
    ],
)
def test_a_server_that_keeps_to_other_rules_is_named(ids: list[int], reason: str, says: str | None) -> None:
    assert fault(ids, reason, 40, ENDS) == says
