"""From a recipe and a run to what a search works with: its space, its plan, and what its judges need; without torch."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from boom_ray.config import Recipe
from boom_ray.config.search import GRADIENT
from boom_ray.data.bagging import derive_seed
from boom_ray.data.batches import DrawSettings
from boom_ray.ledger import Ledger
from boom_ray.merge.gram import Grams
from boom_ray.plan import Keys
from boom_ray.search.baselines import DescentPlan, Setup
from boom_ray.search.coefficients import merge_spec
from boom_ray.search.groups import group_names, tensor_groups
from boom_ray.search.objective_rows import ObjectiveSettings, Source, halving_shares
from boom_ray.search.points import ALL, even_point
from boom_ray.search.searchers import SearchPlan
from boom_ray.search.space import Space
from boom_ray.train.rows import read_draw

if TYPE_CHECKING:
    from boom_ray.search.judging import JudgeSpec


def space_of(recipe: Recipe, members: int, groups: tuple[str, ...] = (ALL,)) -> Space:
    """The space of a recipe's search.

    Raises:
        BoomError: no point lies in it, or a merge method is not in the span of the members.
    """
    search = recipe.search
    return Space(
        members=members,
        methods=search.methods or (recipe.merge.method,),
        groups=groups,
        scale=search.scale,
        weights=search.weights,
        base_share=search.base_share,
        drop=search.drop_members,
    )


def setup_of(recipe: Recipe, ledger: Ledger, keys: Keys) -> Setup:
    """What is searched in a run: the ratio and the uniform merge come first, so that what is found is no worse."""
    search = recipe.search
    grams = Grams.load(ledger.path(keys.grams) / "grams.npz")
    groups = tuple(group_names(tensor_groups(list(grams.matrices), search.groups)))
    space = space_of(recipe, len(keys.ensemble), groups)
    ratios = tuple(keys.ratios)
    method = recipe.merge.method
    if search.searcher in GRADIENT:
        plan: SearchPlan | DescentPlan = DescentPlan(search.searcher, search.trials, search.budget_seconds)
        return Setup(plan, method, ratios)
    even = (even_point(space.methods[0], weights, groups=groups) for weights in (ratios, (1.0,) * len(ratios)))
    plan = SearchPlan(
        space=space,
        searcher=search.searcher,
        trials=search.trials,
        round=search.round,
        seed=derive_seed(recipe.seed, "search"),
        first=tuple(space.point(space.parameters(point)) for point in even),
        rungs=search.halving.rungs if search.halving else 1,
        eta=search.halving.eta if search.halving else 2,
        budget=search.budget_seconds,
    )
    return Setup(plan, method, ratios)


def objective_settings(recipe: Recipe) -> ObjectiveSettings:
    """How a recipe judges merges."""
    search = recipe.search
    return ObjectiveSettings(
        kind=search.objective,
        aggregate=search.aggregate,
        max_rows=search.max_rows,
        shares=halving_shares(search.halving.rungs, search.halving.eta) if search.halving else (1.0,),
        datasets=search.datasets,
        temperature=recipe.train.temperature,
        precision=search.precision,
    )


def source_of(recipe: Recipe, ledger: Ledger, keys: Keys) -> Source:
    """Where the objective of a run takes its rows from."""
    return Source(
        tokens=ledger.path(keys.tokens).resolve(),
        drawn=read_draw(ledger, keys),
        draw=DrawSettings(recipe.seed, recipe.train.hard_negatives),
        members=tuple(keys.ensemble),
        reported=_reported(recipe) if recipe.search.datasets else (),
    )


def judge_spec(recipe: Recipe, ledger: Ledger, keys: Keys, samples: Path) -> JudgeSpec:
    """What the judging processes of a run need; ``samples`` is a folder that all of them see."""
    from boom_ray.search.gradient import GradientSettings
    from boom_ray.search.judging import JudgeSpec

    search, gradient = recipe.search, None
    if search.searcher in GRADIENT:
        gradient = GradientSettings(
            searcher=search.searcher,  # type: ignore[arg-type]
            seed=derive_seed(recipe.seed, "search"),
            steps=search.gradient.steps,
            batch=search.gradient.batch,
            learning_rate=search.gradient.learning_rate,
            penalty=search.gradient.penalty,
            method=search.methods[0] if search.methods else None,
            scale=search.scale,
            groups=search.groups,
            start=tuple(keys.ratios),
        )
    spec = merge_spec(ledger, keys, recipe)
    source, settings = source_of(recipe, ledger, keys), objective_settings(recipe)
    return JudgeSpec(spec, source, settings, gradient, samples.resolve(), recipe.resources.cpus_per_worker)


def _reported(recipe: Recipe) -> tuple[str, ...]:
    """Names of everything that the run reports scores on."""
    from boom_ray.evaluate.sets import find_sets

    local = [entry.name for entry in find_sets(recipe.evaluate.sets, None)] if recipe.evaluate.sets else []
    return (*local, *recipe.evaluate.tasks, *recipe.evaluate.benchmarks)


@lru_cache(maxsize=1)
def code_version() -> str:
    """Version of the package and eight digits of its source, for every trial's line."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{version('boom_ray')}+{digest.hexdigest()[:8]}"
