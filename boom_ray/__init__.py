"""boom_ray: bag, train, merge, score and publish ensembles of text embedding models.

The commands of ``boom-ray`` as functions: :func:`run`, :func:`update`, :func:`merge` and :func:`evaluate`. Importing
the package imports nothing heavy; each function brings what it needs when it is called.
"""

from __future__ import annotations

from typing import Any

from boom_ray.config import BoomError, Recipe
from boom_ray.recipe import load_recipe

__all__ = ["BoomError", "Recipe", "evaluate", "load_recipe", "merge", "run", "update"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what :func:`run`, :func:`update`, :func:`merge` and :func:`evaluate` need on first use (PEP 562)."""
    from importlib import import_module

    if name == "run":
        return import_module("boom_ray.pipeline").run
    if name in ("merge", "evaluate", "update"):
        return import_module(f"boom_ray.{name}")
    raise AttributeError(f"module 'boom_ray' has no attribute {name!r}")
