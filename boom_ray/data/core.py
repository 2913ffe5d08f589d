"""The draw of an update: its bag holds a fixed core of the old rows and all new ones; and the draw of a full retrain.

Both keep the dev rows that there are. Old datasets keep their thresholds, so that rows of new data which belong to them
become dev rows by the same rule; new datasets get thresholds of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from boom_ray.data.bag_rules import BagRule
from boom_ray.data.bagging import (
    ALL,
    Bag,
    Draw,
    Rows,
    bag_rows,
    derive_seed,
    dev_count,
    draw_bag,
    membership_hash,
    threshold,
    training_rows,
)

CURRENT, UPDATE = 0, 1  # the bags of an update: what the current model stands on, and what the new member sees


def draw_update(rows: Rows, before: Draw, old: int, core: float, dev: tuple[float, int]) -> Draw:
    """The bags of an update, and dev rows of datasets that are new.

    Args:
        rows: old rows first, then the new ones.
        before: the draw that the current model was made with.
        old: how many rows are old.
        core: share of the old training rows of every dataset in the new bag; the lowest hashes, so that a smaller core
            lies in a larger one. A dataset whose threshold ``before`` has for the same share keeps it: the core is
            drawn once, and rows that have come since meet the same threshold.
        dev: fraction and minimum, for new datasets.
    """
    drawn = _with_new_dev(rows, before, dev)
    train = {name: where[where < old] for name, where in training_rows(rows, drawn).items()}
    sizes = {name: len(where) for name, where in train.items()}
    seed = derive_seed(before.dev_seed, "core")
    frozen = before.bags[-1] if before.bags and before.bags[-1].since is not None else None
    kept = frozen.limits if frozen is not None and frozen.ratio == core else {}
    limits = {}
    for name, where in train.items():
        hashes = membership_hash(rows.ids[where], seed)
        known = frozen is not None and name in kept and frozen.sizes.get(name)
        limits[name] = kept[name] if known else _core(hashes, core)
    all_old = Bag("subset", 1.0, seed, _even(sizes, 1.0), _all(sizes), sizes)
    member = Bag("subset", core, seed, _even(sizes, core), limits, sizes, since=old)
    return Draw(drawn.dev_seed, drawn.dev, (all_old, member))


def draw_again(rows: Rows, rules: Sequence[BagRule], drawn: Draw, seed: int, weights: Mapping[str, float]) -> Draw:
    """Bags of a full retrain on all rows, with the dev rows of a draw."""
    train = {name: rows.ids[where] for name, where in training_rows(rows, drawn).items()}
    bags = (draw_bag(rule, train, derive_seed(seed, "bag", rule.stream), weights) for rule in rules)
    return Draw(drawn.dev_seed, drawn.dev, tuple(bags))


def rows_behind(rows: Rows, drawn: Draw, bags: Sequence[Bag]) -> int:
    """Distinct rows in at least one of the bags."""
    seen = np.zeros(len(rows.dataset), dtype=bool)
    for bag in bags:
        for where in bag_rows(rows, drawn, bag).values():
            seen[where] = True
    return int(seen.sum())


def _with_new_dev(rows: Rows, before: Draw, dev: tuple[float, int]) -> Draw:
    limits = dict(before.dev)
    for index, name in enumerate(rows.names):
        if name not in limits:
            hashes = membership_hash(rows.ids[rows.of(index)], before.dev_seed)
            held_out = dev_count(len(hashes), *dev)
            limits[name] = (threshold(hashes, held_out // 2), threshold(hashes, held_out))
    return Draw(before.dev_seed, limits, before.bags)


def _core(hashes: np.ndarray, share: float) -> int:
    return threshold(hashes, round(share * len(hashes)))


def _even(sizes: Mapping[str, int], share: float) -> dict[str, float]:
    return {name: share if size else 0.0 for name, size in sizes.items()}


def _all(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: ALL if size else 0 for name, size in sizes.items()}
