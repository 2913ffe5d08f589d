"""The members of a run: trained as many at once as there is room for, and their Gram matrices."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from boom_ray.config import BoomError
from boom_ray.exit_codes import Failed, Infrastructure
from boom_ray.failures import Failure, Kind
from boom_ray.ledger import Key
from boom_ray.plan import derive_keys
from boom_ray.records import drop_checkpoints, lost_members, record_failure
from boom_ray.report.layout import duration
from boom_ray.stages.preparation import Run, due

if TYPE_CHECKING:
    from boom_ray.stages.merging import GramTask
    from boom_ray.train.work import Work

# A run that members have ended: the first of these kinds that one of them has failed with says how.
_ENDS_AS: dict[Kind, type[BoomError]] = {
    "mistake": BoomError,
    "storage": Infrastructure,
    "fault": Failed,
    "machine": Infrastructure,
    "preempted": Infrastructure,
}


def train_members(run: Run) -> Run:
    """Train the members that are missing; the run with the members that it goes on with."""
    from boom_ray.train.placing import missing_members

    drop_checkpoints(run.ledger, run.keys.members)
    todo = missing_members(run.ledger, run.keys)
    if not todo:
        return run
    from boom_ray.stages.merging import GrowingGrams
    from boom_ray.train.work import member_work

    grams = GrowingGrams(_gram_task(run))
    failed = train_together(run, {i: member_work(run.recipe, run.ledger, run.keys, i) for i in todo}, grams.grow)
    grams.wait()
    return without(run, failed)


def train_together(run: Run, members: Mapping[int, Work], landed: Callable[[], None]) -> dict[Key, Failure]:
    """Train members of a run, by number, as many at once as there is room for; ``landed`` is called after each.

    Returns: those that failed for good, and why.
    """
    from boom_ray.cluster.autoscale import grown_nodes
    from boom_ray.costs import measured_speed
    from boom_ray.progress import watch
    from boom_ray.train.ensemble import Room, Watcher, train_ensemble
    from boom_ray.train.placing import ensemble_plan, member_jobs

    recipe, ledger = run.recipe, run.ledger
    rows = {i: sum(len(batch.rows) for batch in batches) for i, (_, batches) in members.items()}
    jobs, speed = member_jobs(ledger, run.keys, rows), measured_speed(ledger, run.keys, recipe)
    nodes = grown_nodes(recipe.resources, [job.width or 1 for job in jobs])
    plan = ensemble_plan(recipe, jobs, nodes, speed)
    work = {f"member-{i}": member for i, member in members.items()}
    shape = ", ".join(f"{p.name} on {p.width}" for p in plan.placements)
    lasting = f", about {duration(plan.makespan)}" if plan.timed else ""
    run.echo(f"[{time.strftime('%H:%M:%S')}] members: {shape} of {plan.limits.slots} worker slots{lasting}")
    watched = [(work[p.name][0], work[p.name][0].meta["bag"]) for p in plan.placements]
    room = Room(plan.bundle, plan.limits.max_concurrent, plan.limits.slots, recipe.resources.hang_seconds)
    with watch(watched) as shown:
        watcher = Watcher(shown.tick, landed, say=run.echo)
        failed = train_ensemble(ledger, work, plan.placements, room, watcher)
    return {work[name][0].key: failure for name, failure in failed.items()}


def without(run: Run, failed: Mapping[Key, Failure]) -> Run:
    """The run without the members that failed for good, where the recipe says that the others are enough.

    Raises:
        BoomError: they are not; names them, and why they failed.
    """
    for key, failure in failed.items():
        record_failure(run.ledger, key, failure)
    if not failed:
        return run
    lost = lost_members(run.recipe, run.ledger, run.keys.members)
    if not lost:
        lines = "\n  ".join(f"{key.label}: {failure}" for key, failure in failed.items())
        raise _ENDS_AS[min((failure.kind for failure in failed.values()), key=list(_ENDS_AS).index)](
            f"{len(failed)} of {len(run.keys.members)} members failed; the others are kept. Run again to resume, or "
            f"set resources.min_members to go on without them.\n  {lines}"
        )
    return replace(run, keys=derive_keys(run.recipe, run.world, lost))


def gram_members(run: Run) -> None:
    """Gram matrices of all members and the base."""
    if not due(run, run.keys.grams, "gram: inner products of all members, tensor by tensor"):
        return
    from boom_ray.stages.merging import make_grams

    make_grams(_gram_task(run))


def _gram_task(run: Run) -> GramTask:
    from boom_ray.stages.merging import GramTask

    return GramTask(str(run.ledger.root), tuple(run.keys.ensemble.values()), run.keys.base, run.keys.grams)
