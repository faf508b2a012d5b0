"""Secrets by their shape, wherever they stand in a text."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.inspect.doctor import examine
from spin_core.runtime.errors import BadInput
from spin_core.runtime.progress import Progress, listen, tell
from spin_core.runtime.redact import redact
from spin_core.store import Store

WORD = string.ascii_letters + string.digits


def of(alphabet: str, size: int, most: int | None = None) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=size, max_size=most or size)


# each shape with what comes before the secret part and after it
SHAPES = {
    "slack": ("https://hooks.slack.com/services/", of(string.ascii_uppercase + string.digits, 24), ""),
    "discord": ("https://discord.com/api/webhooks/1234567890/", of(WORD, 68), ""),
    "teams": ("https://contoso.webhook.office.com/webhookb2/", of(WORD + "-@", 40), ""),
    "flow": ("https://prod-1.westeurope.logic.azure.com:443/workflows/", of(WORD, 32), "/triggers/manual/paths/invoke"),
    "own webhook": ("https://chat.example.org/hooks/", of(WORD, 26), ""),
    "hugging face": ("hf_", of(WORD, 34), ""),
    "openai": ("sk-", of(WORD, 48), ""),
    "openai project": ("sk-proj-", of(WORD + "_-", 48).filter(lambda s: s[-1] not in "_-"), ""),
    "github": ("ghp_", of(WORD, 36), ""),
    "github fine": ("github_pat_", of(WORD + "_", 60), ""),
    "aws": ("AKIA", of(string.ascii_uppercase + string.digits, 16), ""),
    "slack bot": ("xoxb-", of(string.digits, 12), ""),
    "prefect": ("pnu_", of(WORD, 36), ""),
    "wandb": ("WANDB_API_KEY=", of("0123456789abcdef", 40), ""),
    "wandb in a log": ("wandb: login key ", of("0123456789abcdef", 40), ""),
    "basic auth": ("https://user:", of(WORD + "!$*-_", 10), "@host.example/path"),
    "token before a host": ("https://", of(WORD, 36), "@github.com/o/r.git"),
    "database": ("postgresql+asyncpg://prefect:", of(WORD, 12), "@db:5432/prefect"),
    "query token": ("https://host.example/x?a=1&token=", of(WORD, 20), "&b=2"),
    "query key": ("https://host.example/x?key=", of(WORD, 12), ""),
    "query sig": ("https://acct.blob.core.windows.net/c/f?sv=2024&sig=", of(WORD + "%", 30), "&se=1"),
    "s3 link": ("https://b.s3.amazonaws.com/k?X-Amz-Signature=", of("0123456789abcdef", 64), ""),
    "bearer": ("Authorization: Bearer ", of(WORD, 24), ""),
    "basic": ("Authorization: Basic ", of(WORD, 24), ""),
    "json": ('{"api_key": "', of(WORD, 20), '"}'),
    "yaml": ("password: ", of(WORD, 12), ""),
    "jwt": ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.", of(WORD, 43), ""),
}
AROUND = st.sampled_from(["", " ", "\n", "error: ", "see (", "'", '"', "url=", "line 3: ", "θ ", "[", "<"])


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_secret_is_not_shown(shape: str, data: st.DataObject) -> None:
    """Reports, logs, the UI and what people paste into issues: none of them may hold one."""
    before, secrets, after = SHAPES[shape]
    secret = data.draw(secrets)
    text = f"{data.draw(AROUND)}{before}{secret}{after}{data.draw(st.sampled_from(['', ' ', chr(10), ')', ', next', chr(39), chr(34)]))}"
    shown = redact(text, {})
    assert secret not in shown
    assert "***" in shown
    assert redact(shown, {}) == shown


@pytest.mark.parametrize(
    "text",
    [
        "commit 0123456789abcdef0123456789abcdef01234567",
        "artifacts/model/0123456789abcdef01234567 · 96 tokens/s",
        "training.tokens_per_micro_batch=4096, max_new_tokens: 256",
        "generation.api_key_env: SPINFLOW_API_KEY",
        "row 12: 3,412 prompts over 512 tokens were left out",
        "https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k?row=3",
        "http://127.0.0.1:4200/api/health",
        "the tokenizer's token: <|im_end|>",
        "token=None, password: null",
        "task-12345678 risk-12345678 a mask-abcdefgh12",
        "special_tokens_map.json, key: data.name",
        "secrets of the trade",
        "pip install 'spinflow[train]' user@example.org",
    ],
)
def test_other_text_is_as_it_was(text: str) -> None:
    """A log in which every second word is blanked out helps nobody."""
    assert redact(text, {}) == text


def test_errors_are_told_without_secrets() -> None:
    """The one line goes to the terminal, to Prefect's database and into automations' messages."""
    error = BadInput("https://u:hunter22@host/x does not answer", remedy="see https://hooks.slack.com/services/T0/B0/XYZ123")
    assert str(error) == "https://***@host/x does not answer; see https://hooks.slack.com/***"


def test_notes_are_told_without_secrets() -> None:
    seen: list[Progress] = []
    end = listen(seen.append)
    tell("data", "12 rows of https://u:hunter22@host/x")
    end()
    assert [event.note for event in seen] == ["12 rows of https://***@host/x"]


def test_the_doctor_shows_no_secret_by_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variables have names that say nothing, and its log lines any text."""
    monkeypatch.setenv("SPINFLOW_NOTIFY_SLACK", "https://hooks.slack.com/services/T000/B000/abcdefghijkl")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hunter22@mirror.example")
    monkeypatch.setenv("VLLM_SOMETHING", "sk-abcdefghijklmnop1234")
    store = Store(tmp_path)
    (tmp_path / "logs" / "20260101-000000-c-0000").mkdir(parents=True)
    (tmp_path / "logs" / "20260101-000000-c-0000" / "engine.log").write_text(
        "Error: 401 for https://x.example/?token=abcdefgh and ghp_" + "a" * 36
    )
    text = examine(store)
    assert not re.search(r"abcdefgh|hunter22|ghp_a|B000", text)
    assert "SPINFLOW_NOTIFY_SLACK=https://hooks.slack.com/***" in text
    assert "engine: Error: 401" in text
