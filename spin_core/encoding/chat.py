"""Messages to token ids: the only place that renders a chat template.

The prompt's ids are sent to the engine as they are, and training uses those same ids plus the sampled ones; nothing is
tokenised twice. The official scripts generate from `### Instruction: …` and train with another template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import Message
from spin_core.encoding.ends import Ends, find_ends, folder_eos
from spin_core.encoding.template import control_pattern, lost_turn, rendering_options, written_control
from spin_core.runtime.errors import BadInput

_OTHER_TEMPLATE = "set model.chat_template_kwargs (enable_thinking: false, where the template knows it) or model.chat_template"
_QUESTION, _ANSWER = "Which word?", "spinflow"


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids."""

    prompt_ids: list[int]  # [P] what the answer continues, generation prompt included
    real_ids: list[int]  # [C] the answer; ends in an end of turn only if all of it fits the limit


@dataclass(frozen=True)
class Refused:
    """Why a conversation cannot be used."""

    kind: str  # for counting
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


class Renderer:
    """Renders conversations with a model's own chat template."""

    def __init__(self, model_dir: Path, kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = _load(model_dir)
        self._options = rendering_options(kwargs or {})
        self.ends: Ends = find_ends(self.tokenizer, folder_eos(model_dir), self._after_answer())
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self._controls = control_pattern([*special, *self.ends.texts])
        self.added: Counter[str] = Counter()  # text that the template puts before human answers → answers

    def _after_answer(self) -> list[str]:
        """What the template puts behind an answer at the end of a conversation, and behind one that a question follows."""
        asked: Message = {"role": "user", "content": _QUESTION}
        talk: list[Message] = [asked, {"role": "assistant", "content": _ANSWER}]
        try:
            texts = self._texts([talk, [*talk, asked]], prompt=False)
        except Exception as error:
            raise BadInput(f"the chat template fails for a question and its answer: {_said(error)}", remedy=_OTHER_TEMPLATE) from None
        return [text.rpartition(_ANSWER)[2] if _ANSWER in text else "" for text in texts]

    def _texts(self, talks: Sequence[Sequence[Message]], *, prompt: bool) -> list[str]:
        texts: list[str] = self.tokenizer.apply_chat_template(
            [list(talk) for talk in talks], add_generation_prompt=prompt, tokenize=False, **self._options
        )
        return texts

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """A fast tokenizer takes many texts in parallel. The template writes BOS itself."""
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return ids

    def encode(self, talks: Sequence[Sequence[Message]], limit: int) -> list[Encoded | Refused]:
        """Each conversation's prompt and answer, the answer cut at `limit` tokens; or why it cannot be used.

        An answer that is cut has no end of turn, so that a cut human answer looks like a cut sampled one. Template text after
        the end (a newline, mostly) is never scored: no engine would emit it.
        """
        found: list[Encoded | Refused | None] = [self._spelled_out(talk) for talk in talks]
        rendered = self._rendered(talks, found)
        fine = [place for place, entry in enumerate(found) if entry is None]
        prompts, wholes = (self._ids([rendered[place][side] for place in fine]) for side in (0, 1))
        for place, prompt_ids, whole_ids in zip(fine, prompts, wholes, strict=True):
            found[place] = self._answer(prompt_ids, whole_ids, limit)
            if isinstance(found[place], Encoded):
                self._count_added(talks[place][-1]["content"], *rendered[place])
        return [entry for entry in found if entry is not None]

    def _spelled_out(self, talk: Sequence[Message]) -> Refused | None:
        seen = written_control(talk, self._controls)
        if seen is None:
            return None
        turn, token = seen
        reason = f"turn {turn} ({talk[turn - 1]['role']}) has the control token {token} in its text, which would not be read as text"
        return Refused("with a control token in the text", reason, "write it otherwise or remove the row")

    def _rendered(self, talks: Sequence[Sequence[Message]], found: list[Encoded | Refused | None]) -> dict[int, tuple[str, str]]:
        """(prompt, prompt + answer) as text of the rows that may still be used; the others' reasons go into `found`."""
        places = [place for place, entry in enumerate(found) if entry is None]
        try:
            prompts = self._texts([talks[place][:-1] for place in places], prompt=True) if places else []
            wholes = self._texts([talks[place] for place in places], prompt=False) if places else []
            pairs = dict(zip(places, zip(prompts, wholes, strict=True), strict=True))
        except Exception:  # a template is a program: one row that it raises for must not take the others with it
            pairs = {}
            for place in places:
                try:
                    pairs[place] = (self._texts([talks[place][:-1]], prompt=True)[0], self._texts([talks[place]], prompt=False)[0])
                except Exception as error:
                    found[place] = _refused_by_template(talks[place], error)
        for place, (prompt, whole) in pairs.items():
            found[place] = _unlike(talks[place], prompt, whole)
        return pairs

    def _answer(self, prompt_ids: list[int], whole_ids: list[int], limit: int) -> Encoded | Refused:
        if whole_ids[: len(prompt_ids)] != prompt_ids:
            return Refused(
                "whose answer is no continuation of its prompt",
                "its answer is no exact continuation of its prompt: the tokenizer joins the answer's beginning with the prompt's end",
                "remove the white space at the answer's beginning",
            )
        answer = self.ends.cut(whole_ids[len(prompt_ids) :])
        if not answer or answer[-1] not in self.ends.ids:  # templates that leave it to the next turn to end this one
            answer = [*answer, self.ends.template]
        return Encoded(prompt_ids, answer[:limit])

    def _count_added(self, content: str, prompt: str, whole: str) -> None:
        before, found, _ = whole[len(prompt) :].partition(content.strip())
        if found and before.strip():
            self.added[before] += 1


def _load(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the tokenizer in {model_dir} cannot be loaded: {' '.join(str(error).split())[:200]}",
            remedy="name a model with tokenizer files",
        ) from None
    if not tokenizer.chat_template:
        raise BadInput(
            f"the tokenizer in {model_dir} has no chat template", remedy="use an instruction-tuned model, or set model.chat_template"
        )
    return tokenizer


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _refused_by_template(talk: Sequence[Message], error: Exception) -> Refused:
    remedy = "put the system text into the first question, or set model.chat_template" if talk[0]["role"] == "system" else _OTHER_TEMPLATE
    return Refused("that the chat template refuses", f"the chat template refuses it: {_said(error)}", remedy)


def _unlike(talk: Sequence[Message], prompt: str, whole: str) -> Refused | None:
    """Why the rendered texts do not hold what the row says, or None."""
    lost = lost_turn(talk, whole)
    if lost is not None:
        role = talk[lost - 1]["role"]
        reason = f"the chat template leaves out text of turn {lost} ({role})"
        return Refused("of which the chat template leaves out text", reason, _OTHER_TEMPLATE)
    if not whole.startswith(prompt):
        alike = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
        reason = f"its answer is no continuation of its prompt: the chat template ends prompts in {prompt[alike:]!r}, conversations do not"
        return Refused("whose answer is no continuation of its prompt", reason, _OTHER_TEMPLATE)
    return None
