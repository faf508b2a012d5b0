"""The child that asks a judge which of two answers is better, both ways round."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from spin_core.contracts.tables import read_rows, texts_by_row
from spin_core.runtime.errors import BadInput
from spin_core.runtime.process import job_main
from spin_core.runtime.progress import Teller

_ASK = """Two assistants answered the same conversation. Decide which of the answers is better: more right, more helpful, and better \
written. Longer is not better.

[Conversation]
{prompt}

[Answer A]
{a}

[Answer B]
{b}

Reply with one letter, A or B, and nothing else."""
_TRIES = 5
Asked = tuple[str, str, str]  # the conversation, and the answers that stand as A and B


class _Busy(Exception):
    """An answer that may be another one later."""


class Judge:
    """An OpenAI-compatible server."""

    def __init__(self, settings: Mapping[str, Any], key: str) -> None:
        self._url, self._model, self._key = settings["url"].rstrip("/").removesuffix("/v1"), settings["model"], key
        self._open = settings["concurrency"]
        self.counts = {"asked": 0, "refused": 0, "prompt_tokens": 0, "answer_tokens": 0}

    async def prefer(self, asked: Sequence[Asked], what: str) -> list[float | None]:
        """How far A is preferred in each, 0 … 1; None for a refusal."""
        gate, teller = asyncio.Semaphore(self._open), Teller("judging", len(asked), "questions")

        async def one(client: httpx.AsyncClient, question: Asked) -> float | None:
            async with gate:
                found = await self._ask(client, question)
            teller.add(1, what)
            return found

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        async with httpx.AsyncClient(timeout=600.0, headers=headers) as client:
            return await asyncio.gather(*(one(client, question) for question in asked))

    async def _ask(self, client: httpx.AsyncClient, question: Asked) -> float | None:
        prompt, a, b = question
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": _ASK.format(prompt=prompt, a=a, b=b)}],
            "max_tokens": 4,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": 10,
        }
        retried = AsyncRetrying(
            retry=retry_if_exception_type((_Busy, httpx.TransportError)),
            stop=stop_after_attempt(_TRIES),
            wait=wait_exponential(max=30),
            reraise=True,
        )
        try:
            async for attempt in retried:
                with attempt:
                    response = await client.post(f"{self._url}/v1/chat/completions", json=body)
                    if response.status_code in {408, 429} or response.status_code >= 500:
                        raise _Busy(f"{response.status_code}")
        except (_Busy, httpx.TransportError) as error:
            raise BadInput(f"evaluation.judge: {self._url} does not answer ({error})", remedy="check that it runs, and run again") from None
        if response.status_code != 200:
            said = " ".join(response.text.split())[:200]
            raise BadInput(f"evaluation.judge: {self._url} answered {response.status_code}: {said}", remedy="check its model and key")
        found = response.json()
        self.counts["asked"] += 1
        for name, theirs in (("prompt_tokens", "prompt_tokens"), ("answer_tokens", "completion_tokens")):
            self.counts[name] += (found.get("usage") or {}).get(theirs, 0)
        preferred = preference(found["choices"][0])
        self.counts["refused"] += preferred is None
        return preferred


def preference(choice: Mapping[str, Any]) -> float | None:
    """How far A is preferred: P(A) / (P(A) + P(B)) of the first letter where log-probs are given, else 1 or 0 by the text."""
    tokens = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
    mass = {"A": 0.0, "B": 0.0}
    for token in tokens:
        letter = token["token"].strip().upper()
        if letter in mass:
            mass[letter] += math.exp(token["logprob"])
    if total := sum(mass.values()):
        return mass["A"] / total
    text = (choice["message"]["content"] or "").strip().strip("*[]().").upper()
    return {"A": 1.0, "B": 0.0}.get(text[:1]) if len(text) == 1 or text[1:2] in {" ", ".", ")", "]", "*"} else None


def _work(job: dict[str, Any]) -> None:
    judge = Judge(job["settings"], os.environ.get("JUDGE_KEY", ""))
    for split, shards in job["new"].items():
        new, old = (texts_by_row(map(Path, listed)) for listed in (shards, job["old"][split]))
        rows = [
            row for row in read_rows(Path(job["prompts"]) / f"{split}.parquet", ["row_id", "real"]) if row["row_id"] in new.keys() & old
        ]
        rows = rows[: job["settings"]["rows"]]
        prompts = ["\n\n".join(f"{turn['role']}: {turn['content']}" for turn in row["real"][:-1]) for row in rows]
        pairs = [(new[row["row_id"]], old[row["row_id"]]) for row in rows]
        first = [(prompt, ours, theirs) for prompt, (ours, theirs) in zip(prompts, pairs, strict=True)]
        second = [(prompt, theirs, ours) for prompt, ours, theirs in first]
        found = asyncio.run(judge.prefer([*first, *second], split))
        wins = [won(*both) for both in zip(found[: len(rows)], found[len(rows) :], strict=True)]
        columns = {"row_id": [row["row_id"] for row in rows], "won": wins}
        columns |= {name: [len(pair[side]) for pair in pairs] for side, name in enumerate(("new_length", "old_length"))}
        pq.write_table(pa.table(columns), Path(job["out"]) / f"{split}.parquet")
    (Path(job["out"]) / "duel.json").write_text(json.dumps(judge.counts))


def won(as_a: float | None, as_b: float | None) -> float | None:
    """The mean of both orders: the preference for A where the new answer is A, and against it where it is B."""
    known = [*([] if as_a is None else [as_a]), *([] if as_b is None else [1.0 - as_b])]
    return sum(known) / len(known) if known else None


if __name__ == "__main__":
    job_main(_work)
