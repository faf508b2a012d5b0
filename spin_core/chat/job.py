"""The child of `spinflow chat`: holds the players and answers line by line, so that the command never imports torch.

A line in is JSON: a conversation a player. Lines out are JSON: {"side", "text"} for each piece of an answer, {"done"} when all have ended.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from spin_core.encoding.template import rendering_options
from spin_core.players.limits import positions
from spin_core.runtime.process import job_main

_lock = threading.Lock()


def _work(job: dict[str, Any]) -> None:
    players = [_Player(side, folder, job) for side, folder in enumerate(job["models"])]
    _tell({"ready": True})
    for line in sys.stdin:
        talks = json.loads(line)
        threads = [threading.Thread(target=player.answer, args=(talk,)) for player, talk in zip(players, talks, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _tell({"done": True})


class _Player:
    """One model with its tokenizer."""

    def __init__(self, side: int, folder: str, job: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        gpu = torch.cuda.is_available()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if gpu else torch.float32)
        self._model.to("cuda" if gpu else "cpu").eval()
        self._side, self._job = side, job
        self._most = positions(self._model.config.to_dict()) or 2**31

    def answer(self, talk: list[dict[str, str]]) -> None:
        """Tells the answer to a conversation piece by piece."""
        try:
            self._answer(talk)
        except Exception as error:  # a template refuses by raising what it likes; the other player's answer goes on
            _tell({"side": self._side, "text": f"[no answer: {' '.join(str(error).split())[:200]}]"})

    def _answer(self, talk: list[dict[str, str]]) -> None:
        from transformers import TextStreamer

        side = self._side

        class Streamer(TextStreamer):  # type: ignore[misc]
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    _tell({"side": side, "text": text})

        options = {**rendering_options(self._job["kwargs"]), "return_dict": True, "return_tensors": "pt"}
        inputs = self._tokenizer.apply_chat_template(talk, add_generation_prompt=True, **options).to(self._model.device)
        room = self._most - inputs["input_ids"].shape[1]
        if room < 1:
            _tell({"side": side, "text": f"[the conversation has reached the model's {self._most} positions; /reset]"})
            return
        warm = self._job["temperature"]
        drawn = {"do_sample": True, "temperature": warm, "top_k": 0} if warm else {"do_sample": False}
        streamer = Streamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        limit = min(room, self._job["max_new_tokens"])
        self._model.generate(**inputs, **drawn, max_new_tokens=limit, eos_token_id=self._job["ends"], streamer=streamer)


def _tell(content: dict[str, Any]) -> None:
    with _lock:
        print(json.dumps(content), flush=True)


if __name__ == "__main__":
    job_main(_work)
