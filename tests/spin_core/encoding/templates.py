"""Published chat templates' rules, in our own words, over tiny tokenizers: what each family does to turns, ends and white space.

Every tokenizer is byte-level, with the family's control tokens and the merges that its rules are about.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('the system role is not known here') }}{% endif %}"
_DOUBLE_NEWLINE = (("Ċ", "Ċ"),)  # "\n\n" is one token, as in the vocabularies of Llama-3 and Qwen


@dataclass(frozen=True)
class Family:
    """A tokenizer and its template."""

    template: str
    control: tuple[str, ...]  # the first is PAD
    eos: str
    end: str  # what its template puts after an answer
    folder_eos: tuple[str, ...] = ()  # of generation_config.json; () is the tokenizer's alone
    bos: str | None = None
    plain: tuple[str, ...] = ()  # added tokens that are not special
    merges: tuple[tuple[str, str], ...] = _DOUBLE_NEWLINE
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def ends(self) -> set[str]:
        """Every token that ends a turn."""
        return {self.eos, self.end, *self.folder_eos}

    def write(self, folder: Path) -> Path:
        """A folder that Renderer loads: tokenizer, config.json and generation_config.json."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: i for i, token in enumerate([*self.control, *self.plain, *alphabet])}
        for left, right in self.merges:
            vocab.setdefault(left + right, len(vocab))
        tokenizer = Tokenizer(models.BPE(vocab, list(self.merges)))
        lines = pre_tokenizers.Split(Regex(r"\n+|[^\n]+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in self.plain])
        names = {"eos_token": self.eos, "pad_token": self.control[0]} | ({"bos_token": self.bos} if self.bos else {})
        others = [token for token in self.control if token not in names.values()]
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=others, **names)
        wrapped.chat_template = self.template
        wrapped.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"vocab_size": len(vocab), "eos_token_id": vocab[self.eos]}))
        if self.folder_eos:
            ids = [vocab[token] for token in self.folder_eos]
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        return folder


CHATML = Family(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ("<pad>", "<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    "<|im_end|>",
)
_LLAMA_TURNS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_LLAMA_CONTROL = ("<pad>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3 = Family(
    "{{ bos_token }}" + _LLAMA_TURNS,
    _LLAMA_CONTROL,
    "<|end_of_text|>",
    "<|eot_id|>",
    folder_eos=("<|end_of_text|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
)
LLAMA32 = Family(
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0].role == 'system' %}{% set text = messages[0].content | trim %}{% set messages = messages[1:] %}{% else %}"
    "{% set text = '' %}{% endif %}<|start_header_id|>system<|end_header_id|>\n\nKnowledge until December 2023\nToday is {{ date_string }}"
    "\n\n{{ text }}<|eot_id|>" + _LLAMA_TURNS,
    (*_LLAMA_CONTROL, "<|eom_id|>"),
    "<|eot_id|>",
    "<|eot_id|>",
    folder_eos=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
)
GEMMA = Family(
    "{{ bos_token }}" + _NO_SYSTEM + "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "<eos>",
    "<end_of_turn>",
    bos="<bos>",
)
PHI3 = Family(
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    ("<pad>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "<|endoftext|>",
    "<|end|>",
    folder_eos=("<|endoftext|>", "<|assistant|>", "<|end|>"),
)
MISTRAL = Family(
    "{{ bos_token }}"
    + _NO_SYSTEM
    + "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}",
    ("<unk>", "<s>", "</s>"),
    "</s>",
    "</s>",
    bos="<s>",
    merges=(("Ġ", "Ġ"),),
)
ZEPHYR = Family(
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ("<unk>", "<s>", "</s>"),
    "</s>",
    "</s>",
    bos="<s>",
)
_THINKING_ANSWER = (
    "{% set parts = m.content.split('</think>') %}{% set thought = parts[0].split('<think>')[-1] if parts | length > 1 else '' %}"
    "{% if loop.last %}<|im_start|>assistant\n<think>\n{{ thought.strip('\n') }}\n</think>\n\n{{ parts[-1].lstrip('\n') }}<|im_end|>\n"
    "{% else %}<|im_start|>assistant\n{{ parts[-1].lstrip('\n') }}<|im_end|>\n{% endif %}"
)
QWEN3 = Family(
    "{% for m in messages %}{% if m.role == 'assistant' %}" + _THINKING_ANSWER + "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    "<|im_end|>",
    folder_eos=("<|im_end|>", "<|endoftext|>"),
    plain=("<think>", "</think>"),
)
R1 = Family(
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",
    ("<pad>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    "<｜end▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    bos="<｜begin▁of▁sentence｜>",
    plain=("<think>", "</think>"),
)
GLM4 = Family(
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ("<pad>", "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    "<|endoftext|>",
    "<|user|>",
    folder_eos=("<|endoftext|>", "<|user|>", "<|observation|>"),
)

FAMILIES = {
    "chatml": CHATML,
    "llama-3": LLAMA3,
    "llama-3.2": LLAMA32,
    "gemma": GEMMA,
    "phi-3": PHI3,
    "mistral": MISTRAL,
    "zephyr": ZEPHYR,
    "qwen3": QWEN3,
    "r1": R1,
    "glm-4": GLM4,
}
