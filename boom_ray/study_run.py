"""``boom-ray study``: the conditions of a recipe carried out as one ledger, each member trained once.

What is finished is decided by the small artifacts ``conditions`` and ``scores`` alone: they can be kept in git, and a
run directory that holds nothing else is gone on with. Members stay, for conditions that are added later; merges, Gram
matrices and averages of weights go as soon as no open condition needs them.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from boom_ray.cluster.lease import held
from boom_ray.config import BoomError, Recipe
from boom_ray.config.bags import Bags
from boom_ray.digests import corpus_datasets
from boom_ray.ledger import Ledger
from boom_ray.plan import World
from boom_ray.recipe import load_recipe
from boom_ray.runs import look, require_data, resolve_run_dir, run_evaluation
from boom_ray.stages.preparation import Echo
from boom_ray.study.conditions import Case, cases, choose
from boom_ray.study.costs import plan_lines
from boom_ray.study.leftovers import tidy
from boom_ray.study.results import StudyResult, read_results
from boom_ray.study_stages import StudyRun, make_models, train_missing

FOLDER = "study"  # of the page, in the run directory
_TOGETHER = 4  # cases scored at once, whose merges lie on disk meanwhile: to start scoring takes its time
Shown = tuple[StudyResult | None, Path | None]  # what has been found, and the page that shows it


@dataclass(frozen=True)
class Limits:
    """What of a study is carried out now: conditions by name (none: all), and the first so many seeds (None: all)."""

    only: Sequence[str] = ()
    seeds: int | None = None


def study(
    recipe: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    echo: Echo = print,
) -> Shown:
    """Carry out the conditions of a recipe that are not finished, and write the report after every few.

    Args:
        recipe: a recipe with a section ``study``; overrides: ``dotted.key=value``.
        run_dir: as of a run of the recipe, which may be there already: corpus, tokens and base are shared.
        limits: what is carried out now; the report shows all that there is.
        echo: receives one line of progress at a time.

    Returns:
        What has been found so far and the page that shows it; None where nothing is finished.

    Raises:
        BoomError: a mistake in the recipe or the data; a member that failed. What was finished is kept.
    """
    under_way = open_study(recipe, overrides, run_dir, limits or Limits(), echo)
    if under_way.open(under_way.chosen):
        return _in_session(under_way)
    echo(f"{under_way.recipe.name}: nothing planned, all conditions asked for are done.")
    return write_report(under_way)


def plan_study(
    recipe: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
) -> list[str]:
    """What :func:`study` would train, without touching anything; arguments as there."""
    under_way = open_study(recipe, overrides, run_dir, limits or Limits(), print)
    return plan_lines(under_way.recipe, under_way.chosen, under_way.ledger)


def open_study(
    path: str | os.PathLike[str],
    overrides: Sequence[str],
    run_dir: str | os.PathLike[str] | None,
    limits: Limits,
    echo: Echo,
) -> StudyRun:
    """A recipe's study as it stands, without touching anything: there may be none yet."""
    recipe = load_recipe(path, tuple(overrides))
    world = study_world(recipe)
    listed = cases(recipe, world)
    chosen = choose(listed, limits.only, limits.seeds)
    check_merges(chosen)
    directory = resolve_run_dir(recipe, run_dir)
    ledger = Ledger.open(directory, recipe.name) if directory.exists() else Ledger(directory)
    told = ["boom-ray", "study", os.fspath(path), *(word for change in overrides for word in ("--set", change))]
    return StudyRun(recipe, ledger, world, listed, tuple(chosen), shlex.join(told), echo)


def study_world(recipe: Recipe) -> World:
    """Digests of what the recipe points at, with the corpus' datasets where a condition makes a member of each."""
    world = look(recipe)
    kinds = {condition.bags.get("kind") for condition in recipe.study.conditions}
    if world.datasets or not kinds & {"dataset", "task_type"}:
        return world
    return replace(world, datasets=corpus_datasets(recipe.model_copy(update={"bags": Bags(kind="dataset")})))


def check_merges(chosen: Sequence[Case]) -> None:
    """Refuse before anything is trained what no members could be merged by.

    Raises:
        BoomError: an unknown merge method, one that is not in the span of the members, a space without points.
    """
    from boom_ray.merge.methods import Setting, check_setting
    from boom_ray.merge.registry import get_method
    from boom_ray.search.settings import space_of

    for case in (case for case in chosen if case.merged):
        method, members = get_method(case.recipe.merge.method), len(case.keys.members)
        if method.space == "elementwise":
            raise BoomError(
                f"study condition '{case.condition.name}': {method.name} is not in the span of the members. A study "
                f"merges by methods that are, such as multislerp, linear or karcher."
            )
        check_setting(Setting(method.name, (1.0,) * members, {}), has_base=True)
        if case.condition.weights == "searched":
            space_of(case.recipe, members)


def _in_session(study: StudyRun) -> Shown:
    from boom_ray.cluster.node_counts import counted_nodes
    from boom_ray.cluster.session import ray_session

    require_data(study.recipe)
    run_evaluation(study.recipe, study.ledger, study.listed[0].keys).sets(None)  # caps and prompts name sets, or raise
    ledger = Ledger.open(study.ledger.root, study.recipe.name)
    with held(ledger, study.echo):
        study = replace(study, ledger=ledger)
        ledger.write_text("recipe.yaml", study.recipe.to_yaml())
        ledger.write_text("world.json", json.dumps(asdict(study.world), indent=1) + "\n")
        ledger.sweep()
        for line in plan_lines(study.recipe, study.chosen, ledger):
            study.echo(line)
        with ray_session(), counted_nodes(ledger):
            shown = _carry_out(study)
        ledger.sweep()
    return shown


def _carry_out(study: StudyRun) -> Shown:
    """Seed by seed: the members that are missing, then a few models after the other."""
    shown: Shown = None, None
    for _, together in groupby(study.open(study.chosen), key=lambda case: (case.condition.exploratory, case.seed)):
        group = list(together)
        train_missing(study, group)
        for start in range(0, len(group), _TOGETHER):
            make_models(study, group[start : start + _TOGETHER])
            tidy(study.ledger, study.listed)
            shown = write_report(study)
    return shown


def write_report(study: StudyRun) -> Shown:
    """The page of what there is so far, in the run directory; needs no member."""
    from boom_ray.report.study import write_study

    result = read_results(study.recipe, study.ledger, study.listed, study.command)
    if result is None:
        return None, None
    with tempfile.TemporaryDirectory(prefix="boom-ray-study-") as folder:
        page = write_study(result, Path(folder))
        for file in sorted(Path(folder).iterdir()):
            study.ledger.write_text(f"{FOLDER}/{file.name}", file.read_text(encoding="utf-8"))
    return result, study.ledger.root / FOLDER / page.name
