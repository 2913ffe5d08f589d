"""The story of an update: every stage in order, each skipped when the ledger already has what it makes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boom_ray.chain import check_unchanged
from boom_ray.cluster.lease import held
from boom_ray.data.bag_rules import BagRule
from boom_ray.data.bagging import derive_seed
from boom_ray.data.known import NothingNew
from boom_ray.pipeline import search_members
from boom_ray.runs import require_data
from boom_ray.search.points import Point
from boom_ray.stages.members import gram_members, train_members
from boom_ray.stages.preparation import due, task_on
from boom_ray.update.keys import TableKeys, Trained, training_keys
from boom_ray.update.rows import as_run, draw_bags, join_rows, make_fresh, make_tokens, pair_of
from boom_ray.update.scores import evaluation
from boom_ray.update.task import Job, after, load_job


@dataclass(frozen=True)
class UpdateResult:
    """The version that stands now: where it lies, its report, and what the report shows. ``made``: by this call."""

    published: Path
    report: Path | None
    summary: dict[str, Any]
    made: bool


def update(
    recipe: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    against_retrain: bool = False,
    echo: Callable[[str], None] = print,
) -> UpdateResult:
    """Take new data into a published model: the next version. A second call with the same data finds it done.

    Args:
        recipe: a recipe with a section ``update``, or a file that holds that section alone.
        overrides: ``dotted.key=value``.
        run_dir: of the model; default: ``update.model``, else the usual place of the recipe's run.
        against_retrain: train all members again on old and new rows, and score that, too.
        echo: receives one line of progress at a time.

    Raises:
        BoomError: a mistake in the recipe or the data; a model that has changed since it was published.
    """
    job = load_job(recipe, overrides, run_dir, echo)
    parent, made = job.stand.version, not job.has(job.keys.published)
    try:
        if made:
            check_inputs(job)
            _in_session(job, _carry_out, f"{job.recipe.name}: {job.keys.name} from {parent.name}, {parent.key.name}")
        else:
            echo(f"{job.recipe.name}: nothing planned, {job.keys.published.name} has these data already.")
    except NothingNew as nothing:
        echo(f"{job.recipe.name}: nothing to do: {nothing}")
        return UpdateResult(job.path(parent.key), None, {}, False)
    from boom_ray.update.retrain import retrain, retrained
    from boom_ray.update.summary import write_update_report

    if against_retrain and not retrained(job):
        _in_session(job, retrain, f"{job.recipe.name}: full retrain on old and new rows, to compare with")
    summary, report = write_update_report(job)
    return UpdateResult(job.path(job.keys.published), report, summary, made)


def check_inputs(job: Job) -> None:
    """Refuse to go on from anything that is no longer what was published or trained.

    Raises:
        BoomError: names the file.
    """
    check_unchanged(job.ledger, job.stand.version)
    members = [member.key for member in job.stand.members] if job.settings.weights == "ensemble" else []
    for key in (job.stand.model, job.run.base, *members):
        job.ledger.verify(key)


def _in_session(job: Job, work: Callable[[Job], None], text: str) -> None:
    from boom_ray.cluster.session import ray_session

    require_data(job.recipe)
    with held(job.ledger, job.echo):
        job.echo(text)
        job.ledger.sweep()
        with ray_session():
            work(job)


def _carry_out(job: Job) -> None:
    make_fresh(job)
    join_rows(job)
    found = evaluation(job)
    found.sets(found.trained)  # a cap that names no set: no member is trained in vain
    make_tokens(job)
    draw_bags(job)
    train_member(job)
    make_candidate(job)
    make_pair(job)
    choose(job)
    merge(job)
    score(job)
    measure_drift(job)
    publish(job)


def train_member(job: Job) -> None:
    """One member, from the base or from the current model; its seed is the version's own."""
    if job.has(job.keys.member):
        return
    seed = derive_seed(job.recipe.seed, "update", job.keys.number) % 2**31
    recipe = job.recipe.model_copy(update={"seed": seed})
    train_members(as_run(job, training_keys(job.keys, job.stand, job.run, job.settings), recipe))


def make_candidate(job: Job) -> None:
    """For weights ``ensemble``: all members ever trained, merged again by their rows from cached Gram matrices."""
    keys, run = job.keys, as_run(job, pair_of(job))
    if keys.candidate == keys.member or not due(run, keys.ensemble, "merge: all members ever trained, by their rows"):
        return
    from boom_ray.search.points import even_point

    members = (*job.stand.members, new_member(job))
    rules = tuple(BagRule("subset", 1.0, i) for i in range(len(members)))
    everyone = replace(pair_of(job), members=tuple(member.key for member in members), grams=keys.everyone, rules=rules)
    gram_members(as_run(job, everyone))
    weights = [float(member.rows) for member in members]
    point = even_point(job.recipe.merge.method, weights, job.recipe.merge.scale)
    _merge(job, replace(everyone, merges={"all": keys.ensemble}), "all", point)


def make_pair(job: Job) -> None:
    """Gram matrices of the current model and of what is merged into it."""
    gram_members(as_run(job, pair_of(job)))


def choose(job: Job) -> None:
    """The point of the merge: the weights that the recipe names, and how far a bound on the drift lets them go."""
    keys = job.keys
    if job.has(keys.bound):
        return
    from boom_ray.update.weights import bounded, target_point

    if job.settings.weights == "searched":
        search_members(as_run(job, pair_of(job)))
    target = target_point(job, new_member(job).rows)
    told: dict[str, Any] = {"target": target.to_json(), "step": 1.0}
    if job.settings.max_drift is not None:
        from boom_ray.update.stages import bound_step
        from boom_ray.update.weights import bound_task

        due(as_run(job, pair_of(job)), keys.bound, f"drift: how far the merge may go at {job.settings.max_drift:g}")
        told |= bound_step(bound_task(job, pair_of(job), target))
    point = bounded(target, told["step"])
    with job.ledger.stage(keys.bound, {"pair": keys.pair.identity}) as stage:
        stage.meta.update(told, point=point.to_json())


def merge(job: Job) -> None:
    """The new version: current model and candidate, merged."""
    told = job.ledger.manifest(job.keys.bound)["meta"]
    point = Point.from_json(told["point"])
    shares = ", ".join(f"{weight:.3f}" for weight in point.mean_weights())
    what = "new member" if job.keys.candidate == job.keys.member else "all members"
    if not due(as_run(job, pair_of(job)), job.keys.merge, f"merge: current model and {what} with {shares}"):
        return
    _merge(job, pair_of(job), job.keys.name, point)


def _merge(job: Job, keys: TableKeys, name: str, point: Point) -> None:
    from boom_ray.stages.tasks import FinalHandle

    FinalHandle(task_on(as_run(job, keys))).merge(name, point)


def new_member(job: Job) -> Trained:
    """The new member and the rows of its bag."""
    return Trained(job.keys.member, int(job.ledger.manifest(job.keys.bags)["meta"]["in_bag"]))


def score(job: Job) -> None:
    """Base, current model, new member and new version, on all sets; what the current model has already counts."""
    missing = {name: key for name, key in job.keys.scores.items() if not job.has(key)}
    if not missing:
        return
    from boom_ray.stages.scoring import score_models
    from boom_ray.update.scores import bring_scores

    found = evaluation(job)
    sets = found.sets(found.trained)
    job.echo(f"[{time.strftime('%H:%M:%S')}] scoring {', '.join(missing)} on {len(sets)} sets")
    bring_scores(job.ledger, job.stand, missing)
    score_models(task_on(as_run(job, pair_of(job)), sets, found.trained), missing, job.echo)


def measure_drift(job: Job) -> None:
    """What the new version does to an index of the current one."""
    keys = job.keys
    if not due(as_run(job, pair_of(job)), keys.drift, f"drift: {keys.name} against {job.stand.version.name}"):
        return
    from boom_ray.update.scores import dev_texts, old_sets
    from boom_ray.update.stages import DriftTask, measure_versions

    sets = old_sets(job, evaluation(job))
    texts = {} if sets else {"dev rows of the old corpus": dev_texts(job)}
    old, new = (str(job.path(key).resolve()) for key in (job.stand.model, keys.merge))
    task = DriftTask(old, new, tuple(sets), texts)
    with job.ledger.stage(keys.drift, {"old": job.stand.model.identity, "new": keys.merge.identity}) as stage:
        told = measure_versions(task)
        (stage.path / "drift.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def publish(job: Job) -> None:
    """The version, complete with card and manifest, by one rename."""
    from boom_ray.update.publish import publish_version

    job.echo(f"[{time.strftime('%H:%M:%S')}] publishing {job.keys.published.name}")
    publish_version(job, evaluation(job), after(job, new_member(job).rows, evaluation(job).trained))
