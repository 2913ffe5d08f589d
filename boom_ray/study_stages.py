"""The stages of a study: the members that are missing; then models, their scores, and what is kept of each case."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from boom_ray.config import Recipe
from boom_ray.data.bag_rules import BagRule
from boom_ray.ledger import Key, Ledger
from boom_ray.pipeline import merge_point, search_members
from boom_ray.plan import World, derive_keys
from boom_ray.records import drop_checkpoints
from boom_ray.search.points import Point
from boom_ray.stages.members import gram_members, train_together, without
from boom_ray.stages.preparation import Echo, Run, due, final_task, prepare
from boom_ray.study.conditions import Case, pools
from boom_ray.study.finding import found_of
from boom_ray.study.leftovers import tidy

if TYPE_CHECKING:
    from boom_ray.train.work import Work


@dataclass(frozen=True)
class StudyRun:
    """A study that is under way: all its cases, and those that are carried out now."""

    recipe: Recipe
    ledger: Ledger
    world: World
    listed: tuple[Case, ...]
    chosen: tuple[Case, ...]
    command: str
    echo: Echo

    def open(self, some: Sequence[Case]) -> list[Case]:
        """Those that are not finished."""
        return [case for case in some if not case.done(self.ledger.has)]


def train_missing(study: StudyRun, group: Sequence[Case]) -> None:
    """Train the members that are missing, all at the same time, but those that start from a trunk after all trunks."""
    ledger = study.ledger
    for case in group:
        average = case.keys.models[case.model]
        if case.condition.average and not ledger.has(average) and not ledger.has(case.scores):
            ledger.drop(f"members/{case.keys.members[0].name}")  # trained before anybody wanted its average
    trunks = [case.trunk for case in group if case.trunk]
    _train(study, [*trunks, *(case for case in group if not case.trunk)])
    _train(study, [case for case in group if case.trunk])


def _train(study: StudyRun, group: Sequence[Case]) -> None:
    ledger = study.ledger
    runs = [_run(study, recipe, base) for recipe, base in pools(group, lambda member: not ledger.has(member))]
    for run in runs:
        prepare(run)
    if runs:
        whole, work = _together(runs, group[0].base)
        drop_checkpoints(ledger, whole.keys.members)
        without(whole, train_together(whole, work, lambda: None))
        tidy(ledger, study.listed)


def _run(study: StudyRun, recipe: Recipe, base: Key) -> Run:
    keys = derive_keys(recipe, study.world, base=base)
    return Run(recipe, study.ledger, study.world, keys, study.echo)


def _together(runs: Sequence[Run], base: Key) -> tuple[Run, dict[int, Work]]:
    """The missing members of several runs as those of one on the study's base, and what each has to do."""
    from boom_ray.train.placing import missing_members
    from boom_ray.train.work import member_work

    members: list[Key] = []
    rules: list[BagRule] = []
    work: dict[int, Work] = {}
    for run in runs:
        for index in missing_members(run.ledger, run.keys):
            task, batches = member_work(run.recipe, run.ledger, run.keys, index)
            work[len(members)] = replace(task, name=f"member-{len(members)}"), batches
            members.append(run.keys.members[index])
            rules.append(run.keys.rules[index])
    keys = replace(runs[0].keys, base=base, members=tuple(members), rules=tuple(rules))
    return replace(runs[0], keys=keys), work


def make_models(study: StudyRun, bunch: Sequence[Case]) -> None:
    """From the members of some cases to their models, the models' scores, and what is kept of each."""
    points = [_merge(study, case) for case in bunch]
    _score(study, bunch)
    for case, point in zip(bunch, points, strict=True):
        inputs = {"scores": case.scores.identity, "members": [member.identity for member in case.keys.members]}
        with study.ledger.stage(case.key, inputs=inputs) as stage:
            found_of(study.ledger, case, point).write(stage.path, case)
        study.echo(f"[{time.strftime('%H:%M:%S')}] {case.name}: {_shown(study.ledger, case)}")


def _merge(study: StudyRun, case: Case) -> Point | None:
    """How a case's members become one; merge them so, unless the merge or its scores are there. None: nothing to."""
    run = Run(case.recipe, study.ledger, study.world, case.keys, study.echo)
    prepare(run)
    if not case.merged:
        return None
    point, weights = _point(run, case), case.condition.weights
    if not run.has(case.scores) and due(run, case.keys.merges[weights], f"{case.name}: merging"):
        from boom_ray.stages.tasks import FinalHandle

        FinalHandle(final_task(run)).merge(weights, point)
    return point


def _score(study: StudyRun, bunch: Sequence[Case]) -> None:
    """Score the models of some cases, and the base, where that has not been done, as the models of one run."""
    first, has = bunch[0], study.ledger.has
    models = {case.key.label: case.keys.models[case.model] for case in bunch}
    scores = {case.scores: case.key.label for case in bunch} | {first.keys.scores["base"]: "base"}  # each model once
    wanted = {name: key for key, name in scores.items() if not has(key)}
    if wanted:
        from boom_ray.stages.scoring import score_models

        # names that are scored, no more
        keys = replace(first.keys, base=first.base, members=(), rules=(), merges={}, averages=models)
        task = final_task(Run(first.recipe, study.ledger, study.world, keys, study.echo))
        study.echo(f"[{time.strftime('%H:%M:%S')}] scoring {', '.join(wanted)} on {len(task.sets)} sets")
        score_models(task, wanted, study.echo)


def _point(run: Run, case: Case) -> Point:
    gram_members(run)
    if case.condition.weights == "searched":
        search_members(run)
    return merge_point(run.recipe, run.ledger, run.keys, case.condition.weights)


def _shown(ledger: Ledger, case: Case) -> str:
    """The mean over in-domain and over out-of-domain sets, in points."""
    meta = ledger.manifest(case.scores)["meta"]
    means = []
    for domain in dict.fromkeys(s["domain"] for s in meta["sets"]):
        scores = [meta["scores"][s["name"]] for s in meta["sets"] if s["domain"] == domain]
        means.append(f"{domain.replace('_', '-')} {100 * sum(scores) / len(scores):.2f}")
    return ", ".join(means)
