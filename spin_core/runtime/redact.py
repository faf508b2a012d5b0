"""Takes secrets out of text before it is shown, stored or sent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_?KEY|AUTH_STRING|CONNECTION_URL|WEBHOOK", re.IGNORECASE)
_SHORTEST = 8  # shorter values would blank out ordinary words
_NAMES = (
    r"(?:[\w-]*(?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|access[_-]?key|private[_-]?key|webhook|auth[_-]?string)[\w-]*"
    r"|key|sig|signature|pwd|code|credential|x-amz-[\w-]+)"
)
_SHAPES = [
    (re.compile(pattern, flags), kept)
    for pattern, flags, kept in (
        # a webhook's address is its secret
        (r"(https?://hooks\.slack(?:-gov)?\.com/)\S+?(?=[\s'\"<>)\]},]|$)", re.I, r"\1***"),
        (r"(https?://(?:\w+\.)*discord(?:app)?\.com/api/(?:v\d+/)?webhooks/)\S+?(?=[\s'\"<>)\]},]|$)", re.I, r"\1***"),
        (r"(https?://[\w.-]*(?:webhook\.office\.com|logic\.azure\.com(?::\d+)?)/)\S+?(?=[\s'\"<>)\]},]|$)", re.I, r"\1***"),
        (r"(https?://chat\.googleapis\.com/)\S+?(?=[\s'\"<>)\]},]|$)", re.I, r"\1***"),
        (r"(https?://api\.telegram\.org/bot)[^/\s]+", re.I, r"\1***"),
        (r"(https?://[^\s/?#]+/(?:\S*/)?(?:web)?hooks?/)[^\s'\"<>)\]},]+", re.I, r"\1***"),
        # a user and a password, or a token alone, in front of a host
        (r"(?<=://)[^/\s@?#'\"]+(?=@)", 0, "***"),
        # ?token=…, &sig=…, API_KEY: …, "password": "…"
        (rf"([?&;]{_NAMES}=)[^&\s'\"#<>]+", re.I, r"\1***"),
        (r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.I, r"\1***"),
        (
            r"(\b[\w-]*(?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|access[_-]?key|private[_-]?key)['\"]?\s*[=:]\s*['\"]?)"
            r"(?!\*\*\*|true\b|false\b|none\b|null\b)[^\s'\",;&<>]{8,}",
            re.I,
            r"\1***",
        ),
        # keys with a prefix of their maker's
        (r"\bhf_[A-Za-z0-9]{8,}|\bapi_org_[A-Za-z0-9]{8,}", 0, "***"),
        (r"\bsk-[A-Za-z0-9_-]{8,}|\bsk_(?:live|test)_[A-Za-z0-9]{8,}", 0, "***"),
        (r"\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{12,}", 0, "***"),
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", 0, "***"),
        (r"\bxox[abeoprs]-[\w-]{8,}|\bxapp-[\w-]{8,}", 0, "***"),
        (
            r"\bpnu_\w{8,}|\bpnb_\w{8,}|\bAIza[\w-]{30,}|\bpypi-[\w-]{16,}|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bnpm_\w{16,}|\bwandb_v1_\w{16,}",
            0,
            "***",
        ),
        (r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+", 0, "***"),
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S, "***"),
    )
]
# a key of wandb is 40 hex digits like a git commit, so it is told by what stands before it
_WANDB = re.compile(r"(wandb[^\n]{0,80}?\b)[0-9a-f]{40}\b", re.IGNORECASE)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with *** for the values of secret-looking environment variables and for what has the shape of a secret.

    Shapes are webhook addresses, passwords and tokens in URLs, bearer tokens, values named like a secret, and keys that begin as
    their makers' do.
    """
    for name, value in environment.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    for shape, kept in _SHAPES:
        text = shape.sub(kept, text)
    return _WANDB.sub(r"\1***", text)
