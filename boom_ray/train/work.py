"""From recipe and ledger to what a member trains on: its task and its global batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from boom_ray.config import BoomError, Recipe, Train
from boom_ray.data.accounts import member_account
from boom_ray.data.bagging import Draw, Rows, bag_rows, derive_seed, training_rows
from boom_ray.data.membership import corpus_rows
from boom_ray.data.rules import dataset_rules
from boom_ray.data.schedule import SMALLEST_TAIL, Batch, Plan, Schedule, whole_run
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys, member_seed
from boom_ray.resources import Job, Placement, bundle, place, slots
from boom_ray.train.ensemble import Room, frozen_width
from boom_ray.train.member import MemberTask

_ENDLESS = 1000  # passes of a warm-up: its number of steps ends it

Work = tuple[MemberTask, tuple[Batch, ...]]


def member_work(recipe: Recipe, ledger: Ledger, keys: Keys, index: int) -> Work:
    """One member's task and batches, as its bag, schedule and seed say."""
    rows, drawn = _rows(ledger.path(keys.tokens)), read_draw(ledger, keys)
    plan = member_plan(recipe, ledger, keys, index)
    seed = member_seed(recipe, index)
    accounts = member_account(ledger.read_json(keys.corpus, "counts.json"), rows, drawn, drawn.bags[index], plan)
    in_bag = {name: sum(account[place] for place in ("used", "tail", "cut")) for name, account in accounts.items()}
    meta = {
        "ratio": keys.rules[index].ratio,
        "bag": keys.rules[index].label,
        "seed": seed,
        "per_dataset": {name: in_bag[name] for name in rows.names},
        "tail": dict(plan.dropped),
        "accounts": accounts,
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


def member_plan(recipe: Recipe, ledger: Ledger, keys: Keys, index: int) -> Plan:
    """One member's global batches of all its passes.

    Raises:
        BoomError: they hold not one row.
    """
    drawn = read_draw(ledger, keys)
    bag = bag_rows(_rows(ledger.path(keys.tokens)), drawn, drawn.bags[index])
    plan = whole_run(
        bag,
        schedule(recipe.train, ledger, keys),
        member_seed(recipe, index),
        recipe.train.epochs,
        recipe.train.max_steps,
    )
    if not plan.batches:
        raise BoomError(
            f"member-{index} ({keys.rules[index].label}) has nothing to learn from: its bag holds "
            f"{sum(map(len, bag.values()))} rows, which make no batch. Raise its ratio, lower train.batch_size, or set "
            f"train.tail to keep."
        )
    return plan


def warm_work(recipe: Recipe, ledger: Ledger, keys: Keys, threads: int) -> Work:
    """The warm-up of a built base: a short run over all training rows, in one process."""
    build = recipe.base.build
    assert build is not None  # only a built base is warmed up
    everything = training_rows(_rows(ledger.path(keys.tokens)), read_draw(ledger, keys))
    train = recipe.train.model_copy(update={"max_steps": build.warm_steps, "learning_rate": build.learning_rate})
    seed = derive_seed(recipe.seed, "warm")
    plan = whole_run(everything, schedule(train, ledger, keys), seed, _ENDLESS, build.warm_steps)
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


def read_draw(ledger: Ledger, keys: Keys) -> Draw:
    return Draw.from_json(ledger.read_json(keys.bags, "draw.json"))


def schedule(train: Train, ledger: Ledger, keys: Keys) -> Schedule:
    """How rows become batches under the recipe's training settings and the datasets' rules."""
    rules = dataset_rules(ledger.read_json(keys.tokens, "datasets.json"))
    return Schedule(train.schedule, train.batch_size, SMALLEST_TAIL if train.tail == "keep" else None, rules)


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
