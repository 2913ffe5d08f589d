"""The incremental update: new data in, one light member, one merge, the next version; ``boom_ray.update(recipe)``."""

from __future__ import annotations

import sys
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boom_ray.update.pipeline import UpdateResult


class _Room(ModuleType):
    """A package that can be called, because ``boom_ray.update`` names both the room and its function."""

    def __call__(self, recipe: str | PathLike[str], **options: Any) -> UpdateResult:
        """Take new data into a published model: see :func:`boom_ray.update.pipeline.update`."""
        from boom_ray.update.pipeline import update

        return update(recipe, **options)


sys.modules[__name__].__class__ = _Room
