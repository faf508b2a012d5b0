"""Takes secrets out of text before it is shown, stored or sent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|AUTH_STRING|CONNECTION_URL|WEBHOOK)", re.IGNORECASE)
_SHORTEST = 8  # shorter values would blank out ordinary words


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with the values of secret-looking environment variables, URL passwords and bearer tokens replaced by ***."""
    for name, value in environment.items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    text = re.sub(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)", "***", text)
    return re.sub(r"(?i)(bearer\s+|(?:api|access)[_-]?(?:key|token)['\"]?\s*[=:]\s*['\"]?)[\w.~+/=-]{8,}", r"\1***", text)
