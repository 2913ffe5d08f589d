"""Corpus, tokens and bag of a benchmark that trains members: made by the stages of a run, kept in a directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from boom_ray.cluster.session import ray_session
from boom_ray.config import Recipe
from boom_ray.ledger import Ledger
from boom_ray.plan import derive_keys
from boom_ray.runs import look
from boom_ray.stages import preparation


def prepare(recipe: Recipe, directory: Path, say: Callable[[str], None]) -> preparation.Run:
    """The run of a recipe up to its bags; what the directory holds already is not made again.

    Raises:
        BoomError: missing or bad data.
    """
    world = look(recipe)
    run = preparation.Run(recipe, Ledger.open(directory, recipe.name), world, derive_keys(recipe, world), say)
    if not run.has(run.keys.bags):
        with ray_session():
            preparation.prepare(run)
    return run
