"""boom_ray: bag, train, merge, score and publish ensembles of text embedding models.

The commands of ``boom-ray`` as functions: :func:`run`, :func:`merge` and :func:`evaluate`. Importing the package
imports nothing heavy; each function brings what it needs when it is called.
"""

from __future__ import annotations

from typing import Any

from boom_ray.config import BoomError, Recipe, load_recipe

__all__ = ["BoomError", "Recipe", "evaluate", "load_recipe", "merge", "run"]
__version__ = "0.1.0"

_HOMES = {"run": "boom_ray.pipeline", "merge": "boom_ray.merge.stream", "evaluate": "boom_ray.evaluate.score"}


def __getattr__(name: str) -> Any:
    """Import :func:`run`, :func:`merge` and :func:`evaluate` on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'boom_ray' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
