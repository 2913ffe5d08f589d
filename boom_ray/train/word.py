"""The driver's word to its members that they stop, through the cluster's own key-value store: no file is shared."""

from __future__ import annotations

import secrets

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_put

_NAMESPACE = b"boom_ray"


class Word:
    """Said once in the driver, heard in every process of the cluster that has a copy of it."""

    def __init__(self) -> None:
        self._key = f"stop-{secrets.token_hex(8)}".encode()

    def say(self) -> None:
        _internal_kv_put(self._key, b"1", namespace=_NAMESPACE)

    def said(self) -> bool:
        return bool(_internal_kv_exists(self._key, namespace=_NAMESPACE))

    def forget(self) -> None:
        """Once nobody listens any more."""
        _internal_kv_del(self._key, namespace=_NAMESPACE)
