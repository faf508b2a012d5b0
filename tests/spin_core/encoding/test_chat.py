"""One renderer for generation, scoring and training: prompts are exact prefixes, EOS is there only where the answer ended."""

import json
import shutil
from pathlib import Path

import pytest

from spin_core.contracts.rows import Message
from spin_core.encoding.chat import Renderer
from spin_core.runtime.errors import BadInput

TALK: list[Message] = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "and now?"},
    {"role": "assistant", "content": "café 🙂"},
]


def altered(tiny_model: Path, tmp_path: Path, template: str | None, eos: str | None = "<|im_end|>") -> Path:
    """The tiny model's tokenizer with another template or EOS."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": eos, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def test_prompt_plus_answer_is_the_conversation(tiny_model: Path) -> None:
    renderer = Renderer(tiny_model)
    prompt, answer = renderer.prompt_ids(TALK[:-1]), renderer.real_ids(TALK, 100)
    assert answer[-1] == renderer.eos_id
    assert renderer.eos_id not in answer[:-1]
    assert renderer.text(answer) == "café 🙂"
    assert renderer.tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


def test_a_cut_answer_has_no_eos(tiny_model: Path) -> None:
    """An EOS glued to a cut answer would teach the discriminator lengths."""
    renderer = Renderer(tiny_model)
    whole = renderer.real_ids(TALK, 100)
    for limit in range(1, len(whole)):
        assert renderer.real_ids(TALK, limit) == whole[:limit]
        assert renderer.eos_id not in renderer.real_ids(TALK, limit)


@pytest.mark.parametrize(
    ("template", "eos", "says"),
    [
        (None, "<|im_end|>", "has no chat template; use an instruction-tuned model"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "<|im_end|>", "does not end an answer with the tokenizer's EOS"),
        (
            "{% for m in messages %}{{ m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}{{ 'bot:' if add_generation_prompt }}",
            "<|im_end|>",
            "not an exact token prefix",
        ),
        ("{{ messages[0]['content'] }}", None, "has no EOS token"),
    ],
)
def test_templates_that_cannot_work_are_named(tiny_model: Path, tmp_path: Path, template: str | None, eos: str | None, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Renderer(altered(tiny_model, tmp_path, template, eos)).real_ids(TALK, 10)
