"""From recipe and ledger to what a member trains on: its task and its global batches."""

from __future__ import annotations

from boom_ray.config import Recipe
from boom_ray.data.bagging import derive_seed, training_rows
from boom_ray.data.schedule import Batch, whole_run
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys, member_seed
from boom_ray.train.member import MemberTask
from boom_ray.train.rows import accounts, member_plan, read_draw, read_rows, schedule

_ENDLESS = 1000  # passes of a warm-up: its number of steps ends it

Work = tuple[MemberTask, tuple[Batch, ...]]


def member_work(recipe: Recipe, ledger: Ledger, keys: Keys, index: int) -> Work:
    """One member's task and batches, as its bag, schedule and seed say."""
    plan = member_plan(recipe, ledger, keys, index)
    seed = member_seed(recipe, index)
    counted = accounts(ledger, keys, index, plan)
    in_bag = {name: account["used"] + account["tail"] + account["cut"] for name, account in counted.items()}
    meta = {
        "ratio": keys.rules[index].ratio,
        "bag": keys.rules[index].label,
        "seed": seed,
        "per_dataset": {name: in_bag[name] for name in read_rows(ledger, keys).names},
        "tail": dict(plan.dropped),
        "accounts": counted,
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
        staging=recipe.resources.staging,
        checkpoints=recipe.checkpoints,
    )
    return task, plan.batches


def warm_work(recipe: Recipe, ledger: Ledger, keys: Keys, threads: int) -> Work:
    """The warm-up of a built base: a short run over all training rows, in one process."""
    build = recipe.base.build
    assert build is not None  # only a built base is warmed up
    everything = training_rows(read_rows(ledger, keys), read_draw(ledger, keys))
    settings = {"max_steps": build.warm_steps, "learning_rate": build.learning_rate, "schedule": "batch_shuffle"}
    # a few steps of every dataset and all weights, however members train; averages are of members
    whole = {"lora": None, "precision": "float32", "accumulation": 1, "averages": None}
    train = recipe.train.model_copy(update={**settings, **whole})
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
        staging=recipe.resources.staging,
        checkpoints=recipe.checkpoints,
    )
    return task, plan.batches
