"""Merging checkpoints: Gram matrices, methods, streaming; ``boom_ray.merge(config, out)`` is the room's function."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boom_ray.merge.stream import MergeOptions


class _Room(ModuleType):
    """A package that can be called, because ``boom_ray.merge`` names both the room and its function."""

    def __call__(
        self,
        config: str | PathLike[str] | Mapping[str, Any],
        out: str | PathLike[str],
        options: MergeOptions | None = None,
    ) -> Path:
        """Merge by a mergekit recipe into a new model directory: see :func:`boom_ray.merge.stream.merge`."""
        from boom_ray.merge.stream import MergeOptions, merge

        return merge(config, out, options or MergeOptions())


sys.modules[__name__].__class__ = _Room
