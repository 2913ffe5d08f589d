"""Schedules: the global order of batches, a pure function of (bag, settings, seed, epoch).

The order is the same for any number of workers; a step number is all that a resume needs. One batch holds rows of one
dataset, across all workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from boom_ray.data.bagging import derive_seed

SYMMETRIC = ("clustering", "sts")  # both sides are alike: the paper's code halves their batch (boom.md 1.3)

SMALLEST_TAIL = 2  # rows of a last incomplete batch that is kept: one row alone has no in-batch negatives


@dataclass(frozen=True)
class Batch:
    """One global step: the dataset's name, its row numbers (int64 [B]) and the epoch, from 0."""

    dataset: str
    rows: np.ndarray
    epoch: int


@dataclass(frozen=True)
class Plan:
    """The batches of a whole training run, and how many rows the tails cost by dataset and epoch."""

    batches: tuple[Batch, ...]
    dropped: Mapping[str, int]


def rows_per_batch(task_type: str, batch_size: int) -> int:
    return max(2, batch_size // 2) if task_type in SYMMETRIC else batch_size


def batch_shuffle(
    bag: Mapping[str, np.ndarray], sizes: Mapping[str, int], smallest_tail: int | None, seed: int, epoch: int
) -> Plan:
    """Batch-level shuffling as BOOM's code does it (boom.md 1.4): shuffle rows inside each dataset, cut into batches
    of one dataset, shuffle the list of batches.

    Args:
        bag: row numbers by dataset.
        sizes: rows of one batch by dataset.
        smallest_tail: a last incomplete batch is kept from this many rows on; None drops every tail, as the paper.
    """
    rng = np.random.default_rng(derive_seed(seed, "batch_shuffle", epoch))
    batches: list[Batch] = []
    dropped: dict[str, int] = {}
    for name in sorted(bag):  # a fixed order first, so that the result does not depend on the mapping's
        rows = rng.permutation(np.sort(bag[name]))
        size = sizes[name]
        whole = len(rows) // size * size
        batches += [Batch(name, rows[i : i + size], epoch) for i in range(0, whole, size)]
        tail = rows[whole:]
        if smallest_tail is not None and len(tail) >= smallest_tail:
            batches.append(Batch(name, tail, epoch))
        else:
            dropped[name] = len(tail)
    order = rng.permutation(len(batches))
    return Plan(tuple(batches[i] for i in order), dropped)


def whole_run(
    bag: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    smallest_tail: int | None,
    seed: int,
    epochs: int,
    max_steps: int | None,
) -> Plan:
    """The batches of all epochs, cut at ``max_steps``; ``dropped`` sums over epochs."""
    plans = [batch_shuffle(bag, sizes, smallest_tail, seed, epoch) for epoch in range(epochs)]
    batches = tuple(b for plan in plans for b in plan.batches)[:max_steps]
    dropped = {name: sum(p.dropped.get(name, 0) for p in plans) for name in bag}
    return Plan(batches, dropped)


def rank_rows(rows: np.ndarray, rank: int, width: int) -> np.ndarray:
    """One of ``width`` workers' slice of a global batch; slices are disjoint and differ by one row at most."""
    return rows[rank::width]
