"""A run: the stages in order, each skipped when the ledger already has what it makes."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_ray.cluster.lease import held
from boom_ray.config import Recipe
from boom_ray.config.corpus import Mine
from boom_ray.ledger import Ledger
from boom_ray.plan import MERGES, Keys, derive_keys, missing
from boom_ray.recipe import load_recipe
from boom_ray.records import forget
from boom_ray.report.summary import write_summary
from boom_ray.runs import list_steps, look, require_data, resolve_run_dir, run_keys, with_found_miners
from boom_ray.search.points import Point, even_point
from boom_ray.stages.members import gram_members, train_members
from boom_ray.stages.preparation import Echo, Run, due, final_task, make_corpus, mine_negatives, prepare

if TYPE_CHECKING:
    from boom_ray.stages.final import FinalTask
    from boom_ray.stages.tasks import FinalHandle


@dataclass(frozen=True)
class RunResult:
    """Where a run's results lie; ``summary`` is what the report shows."""

    run_dir: Path
    published: Path
    report: Path
    summary: dict[str, Any]
    planned: int


def run(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    replan: bool = False,
    echo: Echo = print,
) -> RunResult:
    """Carry out a recipe: corpus, bags, members, search, merge, scores, publish. A second call finds all of it done.

    Args:
        recipe: a recipe or the path of one.
        overrides: ``dotted.key=value``, applied to a recipe file.
        run_dir: default ``$BOOM_RAY_HOME/NAME``, else ``runs/NAME`` (``~/boom_ray/runs/NAME`` in a Ray job).
        replan: give members that are not finished a new width, and those that failed for good another start.
        echo: receives one line of progress at a time.

    Raises:
        BoomError: a mistake in the recipe or the data, with what to do next. What was finished is kept.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, tuple(overrides))
    ledger = Ledger.open(resolve_run_dir(recipe, run_dir), recipe.name)
    world = look(recipe)
    run, planned = Run(recipe, ledger, world, run_keys(recipe, world, ledger), echo), 0
    if replan or missing(list_steps(recipe, ledger, run.keys)):
        with held(ledger, echo):
            if replan:
                forget(ledger, derive_keys(recipe, world).members)
            run, planned = _in_session(dataclasses.replace(run, keys=run_keys(recipe, world, ledger)))
    if not planned:
        echo(f"{recipe.name}: nothing planned, everything is done.")
    summary, report = write_summary(ledger, run.keys, recipe)
    return RunResult(ledger.root, ledger.path(run.keys.published), report, summary, planned)


def _in_session(run: Run) -> tuple[Run, int]:
    """Carry out the steps that are missing: the run as it ended, and how many steps these were."""
    from boom_ray.cluster.node_counts import counted_nodes
    from boom_ray.cluster.session import ray_session

    recipe, ledger = run.recipe, run.ledger
    todo = missing(list_steps(recipe, ledger, run.keys))
    if not todo:
        return run, 0
    require_data(recipe)
    _check_search(run)
    run.echo(f"{recipe.name}: {len(todo)} steps to do in {ledger}")
    ledger.write_text("recipe.yaml", recipe.to_yaml())
    ledger.write_text("world.json", json.dumps(dataclasses.asdict(run.world), indent=1) + "\n")
    ledger.sweep()
    with ray_session(), counted_nodes(ledger):
        run = _carry_out(run)
    ledger.sweep()  # workers that were killed meanwhile have left something half-written
    return run, len(todo)


def _check_search(run: Run) -> None:
    """Refuse a space without points before anything is trained."""
    if not run.has(run.keys.search):
        from boom_ray.search.settings import space_of

        space_of(run.recipe, len(run.keys.ensemble))


@dataclass(frozen=True)
class MineResult:
    """A corpus with mined negatives: where it lies, what was counted per dataset, and the settings that made it."""

    corpus: Path
    counts: dict[str, dict[str, int]]
    settings: Mine


def mine(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    echo: Echo = print,
) -> MineResult:
    """Carry out the corpus of a recipe and its ``corpus.mine``, nothing else; arguments as :func:`run`.

    A model may also be named as in the run directory: ``member-0`` or ``members/member-0-IDENTITY``.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, tuple(overrides))
    ledger = Ledger.open(resolve_run_dir(recipe, run_dir), recipe.name)
    recipe = with_found_miners(recipe, ledger.root)
    world = look(recipe)
    run = Run(recipe, ledger, world, derive_keys(recipe, world), echo)
    if not run.has(run.keys.mined):
        from boom_ray.cluster.session import ray_session

        with held(ledger, echo), ray_session():
            make_corpus(run)
            mine_negatives(run)
    assert recipe.corpus.mine is not None
    counts = ledger.manifest(run.keys.mined)["meta"]["counts"]
    return MineResult(ledger.path(run.keys.mined), counts, recipe.corpus.mine)


def _carry_out(run: Run) -> Run:
    """The story: every stage, in order. Returns the run with the members that it ended with."""
    prepare(run)
    run = train_members(run)
    gram_members(run)
    search_members(run)
    _final(run)
    return run


def search_members(run: Run) -> None:
    """Search the weights and the scale that the members are merged with."""
    settings, keys = run.recipe.search, run.keys
    what = f"search: {settings.trials} trials of merge weights by {settings.searcher}"
    if not due(run, keys.search, f"{what}, judged on dev half A"):
        return
    from boom_ray.search.trials import search_weights

    with run.ledger.stage(keys.search) as stage:
        best = search_weights(run.recipe, run.ledger, keys, stage.path, run.echo)
        stage.meta.update(best, devices=settings.actors)
    run.ledger.drop(f"scratch/search/{keys.search.name}")  # where a search that is killed keeps its trials
    weights = ", ".join(f"{w:.3f}" for w in best["weights"])
    run.echo(f"  best is trial {best['number']}: weights {weights}, scale {best['scale']:.3f}, {best['value']:.4f}")


def _final(run: Run) -> None:
    """Merge, score all models, publish."""
    keys, recipe = run.keys, run.recipe
    if run.has(keys.published):
        return
    task = final_task(run)
    _merge(run, task)
    due_scores = {name: key for name, key in keys.scores.items() if not run.has(key)}
    if due_scores:
        from boom_ray.stages.scoring import score_models

        models = f"{len(due_scores)} models" if len(due_scores) > 1 else next(iter(due_scores))
        run.echo(f"[{time.strftime('%H:%M:%S')}] final: scoring {models} on {len(task.sets)} sets")
        score_models(task, due_scores, run.echo)
    if task.sets:
        from boom_ray.stages.tasks import mark_sets

        run.echo(f"[{time.strftime('%H:%M:%S')}] final: looking for test texts of the sets in the corpus")
        mark_sets(task)
    run.echo(f"[{time.strftime('%H:%M:%S')}] final: publishing merge-{recipe.merge.weights}")
    summary, _ = write_summary(run.ledger, keys, recipe)
    _final_actor(task).publish(summary)


def _merge(run: Run, task: FinalTask) -> None:
    """The merges of the table; their actor is gone, with its cores, when they are there."""
    final = None
    for name in MERGES:
        if not due(run, run.keys.merges[name], f"final: merging with {name} weights"):
            continue
        final = final or _final_actor(task)
        final.merge(name, merge_point(run.recipe, run.ledger, run.keys, name))


def _final_actor(task: FinalTask) -> FinalHandle:
    from boom_ray.stages.tasks import FinalHandle

    return FinalHandle(task)


def merge_point(recipe: Recipe, ledger: Ledger, keys: Keys, name: str) -> Point:
    """The point of one of the merges in the table."""
    if name == "searched":
        return Point.from_json(ledger.manifest(keys.search)["meta"]["point"])
    shares = keys.ratios if name == "ratio" else [1.0] * len(keys.ratios)
    return even_point(recipe.merge.method, shares, recipe.merge.scale)
