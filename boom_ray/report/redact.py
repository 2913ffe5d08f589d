"""Nothing secret leaves the run through a page or a card."""

from __future__ import annotations

import re
from typing import Any

_KEYS = r"(?:api[_-]?key|access[_-]?key|private[_-]?key|token|secret|password|passwd|credential|signature)"
_PATTERNS = (
    (re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"), "***"),  # user:password in an address
    (re.compile(rf"(?i)\b([\w-]*{_KEYS}\b[\"']?\s*[=:]\s*[\"']?)([^\s&\"']+)"), r"\1***"),
    (re.compile(r"\b(?:hf|ghp|gho|ghs|github_pat|sk|xox[abp])[_-][A-Za-z0-9_-]{16,}"), "***"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "***"),
)


def redact(text: str) -> str:
    """Replace what looks like a credential: passwords in addresses, values of token-like keys, known token forms."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def scrub(value: Any) -> Any:
    """The same mappings, lists and numbers with every text redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: scrub(item) for key, item in value.items()}
    return [scrub(item) for item in value] if isinstance(value, list | tuple) else value
