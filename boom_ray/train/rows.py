"""What a member will see, from recipe and ledger, without Ray or torch: its bag, its batches, its accounts of rows."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from boom_ray.config import BoomError, Recipe, Train
from boom_ray.data.accounts import Account, member_account
from boom_ray.data.bagging import Draw, Rows, bag_rows
from boom_ray.data.membership import corpus_rows
from boom_ray.data.rules import dataset_rules
from boom_ray.data.schedule import SMALLEST_TAIL, Plan, Schedule, whole_run
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys, member_seed


def read_rows(ledger: Ledger, keys: Keys) -> Rows:
    """Ids and datasets of the tokenised corpus.

    Raises:
        BoomError: it has not been made yet.
    """
    ledger.manifest(keys.tokens)
    return _rows(ledger.path(keys.tokens))


def read_draw(ledger: Ledger, keys: Keys) -> Draw:
    """The frozen draw of the run.

    Raises:
        BoomError: it has not been made yet.
    """
    ledger.manifest(keys.bags)
    return Draw.from_json(ledger.read_json(keys.bags, "draw.json"))


def schedule(train: Train, ledger: Ledger, keys: Keys) -> Schedule:
    """How rows become batches under the recipe's training settings and the datasets' rules."""
    rules = dataset_rules(ledger.read_json(keys.tokens, "datasets.json"))
    return Schedule(train.schedule, train.batch_size, SMALLEST_TAIL if train.tail == "keep" else None, rules)


def member_bag(ledger: Ledger, keys: Keys, index: int) -> dict[str, np.ndarray]:
    """Row numbers by dataset, as often as they were drawn."""
    drawn = read_draw(ledger, keys)
    return bag_rows(read_rows(ledger, keys), drawn, drawn.bags[index])


def member_plan(recipe: Recipe, ledger: Ledger, keys: Keys, index: int) -> Plan:
    """One member's global batches of all its passes.

    Raises:
        BoomError: they hold not one row.
    """
    train, bag = recipe.train, member_bag(ledger, keys, index)
    plan = whole_run(bag, schedule(train, ledger, keys), member_seed(recipe, index), train.epochs, train.max_steps)
    if not plan.batches:
        raise BoomError(
            f"member-{index} ({keys.rules[index].label}) has nothing to learn from: its bag holds "
            f"{sum(map(len, bag.values()))} rows, which make no batch. Raise its ratio, lower train.batch_size, or set "
            f"train.tail to keep."
        )
    return plan


def accounts(ledger: Ledger, keys: Keys, index: int, plan: Plan) -> dict[str, Account]:
    """Where every row of the corpus went, for one member."""
    counts = ledger.read_json(keys.corpus, "counts.json")
    drawn = read_draw(ledger, keys)
    return member_account(counts, read_rows(ledger, keys), drawn, drawn.bags[index], plan)


@lru_cache(maxsize=2)
def _rows(tokens: Path) -> Rows:
    """Read once, although every member asks."""
    return corpus_rows(tokens)
