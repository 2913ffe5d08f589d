"""A search of merge weights over the members of a run that has trained them, with any of them left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.cluster.lease import held
from boom_ray.config import BoomError, Recipe
from boom_ray.ledger import Ledger
from boom_ray.pipeline import search_members
from boom_ray.plan import Keys, World, derive_keys
from boom_ray.recipe import load_recipe
from boom_ray.runs import look, look_at, read_world, run_keys
from boom_ray.search.points import Point
from boom_ray.stages.members import gram_members
from boom_ray.stages.preparation import Echo, Run
from boom_ray.stores.mirrors import opened


@dataclass(frozen=True)
class WeightSearch:
    """A finished search: its folder in the ledger, ``search.json``, and whether this call ran it."""

    run: Run
    folder: Path
    found: dict[str, Any]
    new: bool


def search_run(
    where: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    members: Sequence[int] | None = None,
    echo: Echo = print,
) -> WeightSearch:
    """Search the merge weights of a run's members. A second call finds it done, a call after a kill goes on.

    Args:
        where: run directory or recipe; overrides: ``dotted.key=value``, as in ``search.trials=200``.
        members: numbers of the members to merge; default all.

    Raises:
        BoomError: a member that is not in the ledger; nothing to judge by; a space without points.
    """
    run = _open(opened(where), overrides, run_dir, members, echo)
    new = not run.has(run.keys.search)
    if new:
        from boom_ray.cluster.session import ray_session
        from boom_ray.search.settings import space_of

        space_of(run.recipe, len(run.keys.ensemble))
        with held(run.ledger, echo), ray_session():
            run.ledger.sweep()
            gram_members(run)
            search_members(run)
    return WeightSearch(run, run.path(run.keys.search), run.ledger.read_json(run.keys.search, "search.json"), new)


def _open(
    where: Path,
    overrides: Sequence[str],
    run_dir: str | os.PathLike[str] | None,
    members: Sequence[int] | None,
    echo: Echo,
) -> Run:
    recipe: Recipe
    ledger: Ledger
    world: World
    if where.is_dir():
        world, recipe, ledger = read_world(where), load_recipe(where / "recipe.yaml", tuple(overrides)), Ledger(where)
    else:
        recipe, ledger, _ = look_at(where, overrides=overrides, run_dir=run_dir)
        world = look(recipe)
    keys = run_keys(recipe, world, ledger)
    if members is not None:
        lost = tuple(i for i in range(len(keys.members)) if i not in chosen_members(members, keys))
        keys = derive_keys(recipe, world, lost)
    untrained = [key.label for key in keys.ensemble.values() if not ledger.has(key)]
    if untrained:
        raise BoomError(
            f"{ledger}: {', '.join(untrained)} {'is' if len(untrained) == 1 else 'are'} not in the ledger: not "
            "trained with these settings. `boom-ray run` trains what is missing; --members leaves members out."
        )
    return Run(recipe, ledger, world, keys, echo)


def chosen_members(members: Sequence[int], keys: Keys) -> list[int]:
    """The members asked for, each of them one of the run.

    Raises:
        BoomError: none, one twice, or one that the run does not have.
    """
    known = ", ".join(str(i) for i in keys.ensemble)
    if not members:
        raise BoomError(f"--members names no member. This run has {known}.")
    for member in members:
        if member not in keys.ensemble:
            raise BoomError(f"member-{member} is not in the ledger: this run has the members {known}.")
    if len(set(members)) < len(members):
        raise BoomError(f"--members names a member twice: {', '.join(map(str, members))}.")
    return sorted(members)


def write_models(search: WeightSearch, folder: Path, echo: Echo = print) -> list[Path]:
    """Write every merge of a search's table as a model directory, to be scored on sets of other domains.

    Raises:
        BoomError: the folder holds other files.
    """
    from boom_ray.merge.gram import Grams
    from boom_ray.merge.stream import plan_coefficients, write
    from boom_ray.search.coefficients import merge_spec, point_coefficients

    spec = merge_spec(search.run.ledger, search.run.keys, search.run.recipe)
    grams, written = Grams.load(spec.grams), []
    for entry in search.found["baselines"]:
        target = folder / entry["name"].replace(" ", "-")
        if entry["point"] is None or target.is_dir():
            continue
        chosen = point_coefficients(grams, spec, Point.from_json(entry["point"]))
        folder.mkdir(parents=True, exist_ok=True)
        write(plan_coefficients(chosen, spec.members, spec.base, target))
        echo(f"  {target}")
        written.append(target)
    return written
