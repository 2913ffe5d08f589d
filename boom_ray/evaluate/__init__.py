"""Evaluation with mteb. ``boom_ray.evaluate(model, sets, results=DIR)`` is the room's one function."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boom_ray.evaluate.sets import EvalSet


class _Room(ModuleType):
    """A package that can be called, because ``boom_ray.evaluate`` names both the room and its function."""

    def __call__(
        self, model: str | Path, sets: Sequence[EvalSet] | Sequence[str | Path], *, results: str | Path, **options: Any
    ) -> dict[str, float]:
        """Main score of every set, 0..1: see :func:`boom_ray.evaluate.score.evaluate`."""
        from boom_ray.evaluate.score import evaluate

        return evaluate(model, sets, results=results, **options)


sys.modules[__name__].__class__ = _Room
