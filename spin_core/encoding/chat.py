"""Messages to token ids: the only place that renders a chat template.

The prompt's ids are sent to the engine as they are, and training uses those same ids plus the sampled ones; nothing is
tokenised twice. The official scripts generate from `### Instruction: …` and train with another template.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import Message
from spin_core.runtime.errors import BadInput


class Renderer:
    """Renders conversations with a model's own chat template."""

    def __init__(self, model_dir: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"the tokenizer in {model_dir} cannot be loaded: {' '.join(str(error).split())[:200]}",
                remedy="name a model with tokenizer files",
            ) from None
        if not self.tokenizer.chat_template:
            raise BadInput(
                f"the tokenizer in {model_dir} has no chat template",
                remedy="use an instruction-tuned model or add a chat_template to tokenizer_config.json",
            )
        if self.tokenizer.eos_token_id is None:
            raise BadInput(f"the tokenizer in {model_dir} has no EOS token", remedy="set eos_token in tokenizer_config.json")
        self.eos_id: int = self.tokenizer.eos_token_id

    def _ids(self, talks: Sequence[Sequence[Message]], *, prompt: bool) -> list[list[int]]:
        if not talks:
            return []
        ids: list[list[int]] = self.tokenizer.apply_chat_template(
            [list(talk) for talk in talks], add_generation_prompt=prompt, tokenize=True, return_dict=False
        )
        return ids

    def prompt_ids(self, context: Sequence[Message]) -> list[int]:
        """The ids [P] that the answer continues, generation prompt included."""
        return self.prompt_batch([context])[0]

    def prompt_batch(self, contexts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """`prompt_ids` of many contexts: a fast tokenizer does them in parallel."""
        return self._ids(contexts, prompt=True)

    def real_ids(self, messages: Sequence[Message], limit: int) -> list[int]:
        """The ids [C] of the last assistant turn as training scores them.

        Ends in EOS only if the whole answer and its EOS fit in `limit` tokens, so that a cut human answer looks like a cut
        sampled one. Template text after the EOS (a newline, mostly) is never scored: no engine would emit it.
        Raises BadInput where the prompt is not an exact prefix.
        """
        return self.real_batch([messages], self.prompt_batch([messages[:-1]]), limit)[0]

    def real_batch(self, talks: Sequence[Sequence[Message]], prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
        """`real_ids` of many conversations, with the `prompt_ids` of their contexts."""
        return [self._answer(full, prompt, limit) for full, prompt in zip(self._ids(talks, prompt=False), prompts, strict=True)]

    def _answer(self, full: list[int], prompt: list[int], limit: int) -> list[int]:
        if full[: len(prompt)] != prompt:
            raise BadInput(
                "the chat template's prompt is not an exact token prefix of prompt + answer",
                remedy="use a template whose assistant turn starts with the generation prompt",
            )
        answer = full[len(prompt) :]
        try:
            answer = answer[: answer.index(self.eos_id) + 1]
        except ValueError:
            raise BadInput(
                "the chat template does not end an answer with the tokenizer's EOS", remedy="mend eos_token or the template"
            ) from None
        return answer[:limit]

    def text(self, ids: Sequence[int]) -> str:
        """The answer as people read it."""
        decoded: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded.strip()
