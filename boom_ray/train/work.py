"""From recipe and ledger to what a member trains on: its task and its global batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from boom_ray.config import Recipe, Train
from boom_ray.data.bagging import Draw, Rows, bag_rows, derive_seed, dev_rows
from boom_ray.data.membership import corpus_rows
from boom_ray.data.schedule import SMALLEST_TAIL, Batch, Plan, rows_per_batch, whole_run
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys, member_seed
from boom_ray.resources import Job, Placement, bundle, place, slots
from boom_ray.train.ensemble import Room, frozen_width
from boom_ray.train.member import MemberTask

Work = tuple[MemberTask, tuple[Batch, ...]]


def member_work(recipe: Recipe, ledger: Ledger, keys: Keys, index: int) -> Work:
    """One member's task and batches, as its bag, schedule and seed say."""
    drawn = Draw.from_json(ledger.read_json(keys.bags, "draw.json"))
    bag = bag_rows(_rows(ledger.path(keys.tokens)), drawn, drawn.bags[index])
    seed = member_seed(recipe, index)
    plan = schedule(recipe.train, task_types(ledger, keys), bag, seed)
    ratio = recipe.bags.ratios[index]
    meta = {
        "ratio": ratio,
        "seed": seed,
        "per_dataset": {name: len(rows) for name, rows in bag.items()},
        "tail": dict(plan.dropped),
    }
    task = MemberTask(
        name=f"member-{index}",
        root=str(ledger.root.resolve()),
        key=keys.members[index],
        base=str(ledger.path(keys.base).resolve()),
        tokens=str(ledger.path(keys.tokens).resolve()),
        train=recipe.train,
        steps=len(plan.batches),
        seed=seed,
        threads=recipe.resources.cpus_per_worker,
        meta=meta,
    )
    return task, plan.batches


def warm_work(recipe: Recipe, ledger: Ledger, keys: Keys, threads: int) -> Work:
    """The warm-up of a built base: a short run over all training rows, in one process."""
    build = recipe.base.build
    assert build is not None  # only a built base is warmed up
    drawn = Draw.from_json(ledger.read_json(keys.bags, "draw.json"))
    rows = _rows(ledger.path(keys.tokens))
    dev = dev_rows(rows, drawn)
    everything = {name: np.setdiff1d(rows.of(i), dev[name]) for i, name in enumerate(rows.names)}
    train = recipe.train.model_copy(
        update={"max_steps": build.warm_steps, "learning_rate": build.learning_rate, "epochs": 1000}
    )
    seed = derive_seed(recipe.seed, "warm")
    plan = schedule(train, task_types(ledger, keys), everything, seed)
    task = MemberTask(
        name="warm base",
        root=str(ledger.root.resolve()),
        key=keys.base,
        base=str(ledger.path(keys.start).resolve()),
        tokens=str(ledger.path(keys.tokens).resolve()),
        train=train,
        steps=len(plan.batches),
        seed=seed,
        threads=threads,
    )
    return task, plan.batches


def schedule(train: Train, types: Mapping[str, str], bag: Mapping[str, np.ndarray], seed: int) -> Plan:
    """The global batches of a whole run under the recipe's training settings."""
    sizes = {name: rows_per_batch(types[name], train.batch_size) for name in bag}
    per_epoch = sum(-(-len(rows) // sizes[name]) for name, rows in bag.items())
    epochs = (
        train.epochs if train.max_steps is None else min(train.epochs, -(-train.max_steps // max(1, per_epoch)) + 1)
    )
    return whole_run(bag, sizes, SMALLEST_TAIL if train.tail == "keep" else None, seed, epochs, train.max_steps)


def task_types(ledger: Ledger, keys: Keys) -> dict[str, str]:
    return {d["name"]: d["task_type"] for d in ledger.read_json(keys.tokens, "datasets.json")}


def place_members(
    recipe: Recipe, ledger: Ledger, work: Mapping[str, Work], nodes: Sequence[Mapping[str, float]]
) -> tuple[list[Placement], Room]:
    """Widths and order of the members still to train; a width that the ledger froze stays."""
    totals = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    needed = bundle(totals, recipe.resources.cpus_per_worker, recipe.resources.gpus_per_worker)
    available = slots(nodes, needed)
    jobs = []
    for name, (task, batches) in work.items():
        frozen = frozen_width(ledger, task)
        rows = float(sum(len(b.rows) for b in batches))
        jobs.append(Job(name, max(rows, 1.0), frozen[0] if frozen else None))
    widest = min(recipe.resources.max_width, recipe.train.batch_size)
    most = recipe.resources.max_concurrent
    return place(jobs, available, widest, most), Room(available, needed, most)


@lru_cache(maxsize=2)
def _rows(tokens: Path) -> Rows:
    """Read once, although every member asks."""
    return corpus_rows(tokens)
