"""No credential leaves a run: not in a message, a page or a card, and not in what its directory remembers.

A credential is known by where it stands (``user:password@`` of an address, the value of a key such as ``token``), by
its form (``hf_…``, ``AKIA…``), or because an environment variable with a telling name holds it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, unquote

_HIDDEN = "***"
_USER = re.compile(r"(?<=://)[^\s/@?:\"'<>]*:[^\s@\"'<>]+(?=@)")  # a password may hold a slash that nobody encoded
_LOGIN = re.compile(r"(?<=://)[^\s/@?\"'<>]*(:[^\s/@\"'<>]*)?@")
_KEYS = r"(?:api[_-]?key|access[_-]?key|private[_-]?key|token|secret|password|passwd|credential|signature)"
_PLAIN = r"(?=[^\s&\"']*\d|[^\s&\"']{12})"  # after a bare colon a word of a sentence may follow, too
_VALUES = re.compile(rf"(?i)\b([\w-]*{_KEYS}\b[\"']?\s*(?:=\s*[\"']?|:\s*[\"']|:\s*{_PLAIN}))([^\s&\"']+)")
_FORMS = re.compile(r"\b(?:hf|ghp|gho|ghs|github_pat|sk|xox[abp])[_-][A-Za-z0-9_-]{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_TELLING = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|(API|ACCESS|PRIVATE|ACCOUNT)_?KEY|_(KEY|PAT|PWD|PASS|AUTH)$",
    re.IGNORECASE,
)
_PLACES = re.compile(r"_(PATH|FILE|DIR|HOME|SOCK|URL|MODE)$", re.IGNORECASE)  # they name where a secret is kept
_SHORTEST = 8  # characters: a shorter value stands in harmless words, too


def redact(text: str) -> str:
    """Strike out what looks like a credential, for people to read: also the value of ``token=`` and its like."""
    return _likely(text, _environment())


def redact_known(text: str) -> str:
    """Strike out what is a credential for sure; a text that programs read back keeps its grammar."""
    return _certain(text, _environment())


def scrub(value: Any) -> Any:
    """The same mappings, lists and numbers with every text redacted."""
    secrets = _environment()
    return _each(value, lambda text: _likely(text, secrets))


def without_secrets(value: Any) -> Any:
    """The same mappings, lists and numbers, fit to be written down and read back.

    An address loses its user and password, so that it is opened with the credentials of the environment.
    """
    secrets = _environment()
    return _each(value, lambda text: _storable(text, secrets))


def _likely(text: str, secrets: Sequence[str]) -> str:
    return _VALUES.sub(rf"\1{_HIDDEN}", _certain(text, secrets))


def _certain(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return _FORMS.sub(_HIDDEN, _USER.sub(_HIDDEN, text))


def _storable(text: str, secrets: Sequence[str]) -> str:
    if "://" not in text:
        return _certain(text, secrets)
    address, mark, query = _LOGIN.sub("", text).partition("?")
    return _certain(address, secrets) + mark + _likely(query, secrets)


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    return [_each(item, change) for item in value] if isinstance(value, list | tuple) else value


def _environment() -> list[str]:
    """Values of the environment's secrets, as they are and as addresses hold them; long ones first."""
    found = set()
    for name, value in os.environ.items():
        if len(value) < _SHORTEST or not _TELLING.search(name) or _PLACES.search(name):
            continue
        if not (value.startswith("/") and os.path.exists(value)):
            found |= {value, quote(value, safe=""), unquote(value)}
    return sorted(found, key=len, reverse=True)
