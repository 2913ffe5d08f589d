"""Schedules: each row once per epoch, one dataset per batch, and an order that only bag, seed and epoch decide."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.data.schedule import Batch, Plan, batch_shuffle, rank_rows, rows_per_batch, whole_run

bag_sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 90), min_size=1)
batch_sizes = st.integers(2, 33)
tails = st.none() | st.integers(1, 5)
seeds = st.integers(0, 2**62)


def _bag(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Disjoint row numbers, not in order."""
    starts = {name: 1000 * i for i, name in enumerate(sorted(sizes))}
    return {name: starts[name] + np.random.default_rng(1).permutation(size) for name, size in sizes.items()}


def _same(left: tuple[Batch, ...], right: tuple[Batch, ...]) -> bool:
    return len(left) == len(right) and all(
        (a.dataset, a.epoch) == (b.dataset, b.epoch) and np.array_equal(a.rows, b.rows)
        for a, b in zip(left, right, strict=True)
    )


def _check_epoch(bag: dict[str, np.ndarray], plan: Plan, sizes: dict[str, int], smallest_tail: int | None) -> None:
    for name, rows in bag.items():
        mine = [b.rows for b in plan.batches if b.dataset == name]
        seen = Counter(np.concatenate([np.empty(0, np.int64), *mine]).tolist())
        assert set(seen.values()) <= {1}
        assert set(seen) <= set(rows.tolist())
        tail = len(rows) % sizes[name]
        kept = smallest_tail is not None and tail >= smallest_tail
        assert plan.dropped.get(name, 0) == (0 if kept else tail)
        assert len(seen) + plan.dropped.get(name, 0) == len(rows)
        assert sorted(map(len, mine)) == sorted([sizes[name]] * (len(rows) // sizes[name]) + [tail] * kept)


@given(bag_sizes, batch_sizes, tails, seeds)
def test_every_row_once_per_epoch_or_counted_as_dropped(sizes, batch, smallest_tail, seed):
    bag, per_batch = _bag(sizes), dict.fromkeys(sizes, batch)
    for epoch in (0, 1):
        plan = batch_shuffle(bag, per_batch, smallest_tail, seed, epoch)
        assert all(b.epoch == epoch for b in plan.batches)
        assert all(set(b.rows) <= set(bag[b.dataset].tolist()) for b in plan.batches)  # one dataset per batch
        _check_epoch(bag, plan, per_batch, smallest_tail)


@given(bag_sizes, seeds, st.randoms(use_true_random=False))
def test_neither_the_order_of_datasets_nor_of_rows_matters(sizes, seed, random):
    bag, per_batch = _bag(sizes), dict.fromkeys(sizes, 7)
    names = list(bag)
    random.shuffle(names)
    other = {name: np.array(random.sample(bag[name].tolist(), len(bag[name])), dtype=np.int64) for name in names}
    assert _same(batch_shuffle(bag, per_batch, 2, seed, 0).batches, batch_shuffle(other, per_batch, 2, seed, 0).batches)


def test_another_epoch_or_seed_is_another_order_and_the_same_is_the_same():
    bag, sizes = _bag({"a": 80, "b": 90}), {"a": 8, "b": 8}
    plans = [batch_shuffle(bag, sizes, 2, seed, epoch).batches for seed in (1, 2) for epoch in (0, 1)]
    assert _same(plans[0], batch_shuffle(bag, sizes, 2, 1, 0).batches)
    for i, plan in enumerate(plans):
        for other in plans[:i]:
            assert [b.dataset for b in plan] != [b.dataset for b in other]
            firsts = [{b.rows.tobytes() for b in p} for p in (plan, other)]
            assert not firsts[0] & firsts[1]  # rows are shuffled anew too, not only batches


def test_datasets_are_mixed_and_not_run_one_after_the_other():
    plan = batch_shuffle(_bag({"a": 400, "b": 400}), {"a": 4, "b": 4}, None, 3, 0)
    names = [b.dataset for b in plan.batches]
    changes = sum(x != y for x, y in itertools.pairwise(names))
    assert 80 <= changes <= 120  # 100 expected of 199 neighbours, sigma about 7


@given(bag_sizes, batch_sizes, seeds, st.sampled_from([1, 2, 4, 8]))
def test_ranks_partition_every_batch_and_differ_by_one_row(sizes, batch, seed, width):
    for one in batch_shuffle(_bag(sizes), dict.fromkeys(sizes, batch), 1, seed, 0).batches:
        parts = [rank_rows(one.rows, rank, width) for rank in range(width)]
        assert sorted(np.concatenate(parts).tolist()) == sorted(one.rows.tolist())
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(bag_sizes, seeds, st.integers(1, 3), st.integers(1, 60))
def test_max_steps_is_a_prefix(sizes, seed, epochs, steps):
    bag, per_batch = _bag(sizes), dict.fromkeys(sizes, 7)
    whole = whole_run(bag, per_batch, 2, seed, epochs, None)
    cut = whole_run(bag, per_batch, 2, seed, epochs, steps)
    assert _same(cut.batches, whole.batches[:steps])
    each = [batch_shuffle(bag, per_batch, 2, seed, epoch) for epoch in range(epochs)]
    assert _same(whole.batches, tuple(b for plan in each for b in plan.batches))
    assert whole.dropped == {name: sum(p.dropped.get(name, 0) for p in each) for name in bag}


@pytest.mark.parametrize(
    ("task_type", "rows"),
    [("retrieval", 96), ("reranking", 96), ("classification", 96), ("clustering", 48), ("sts", 48)],
)
def test_symmetric_tasks_take_half_a_batch(task_type, rows):
    assert rows_per_batch(task_type, 96) == rows
    assert rows_per_batch(task_type, 2) == 2
