"""Schedules: each row once per epoch, one dataset per batch, and an order that only bag, seed and epoch decide."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import ScheduleName
from boom_ray.data.rules import DatasetRule
from boom_ray.data.schedule import (
    MIXED,
    Batch,
    Plan,
    Schedule,
    batch_shuffle,
    epoch_size,
    global_order,
    one_pass,
    rank_rows,
    rows_per_batch,
    whole_run,
)

bag_sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 90), min_size=1)
batch_sizes = st.integers(2, 33)
tails = st.none() | st.integers(1, 5)
seeds = st.integers(0, 2**62)
names = st.sampled_from(get_args(ScheduleName))
# in the order of a corpus, which is not that of the alphabet
RULES = {
    "e": DatasetRule("sts", graded=True, symmetric=True),
    "a": DatasetRule("retrieval"),
    "d": DatasetRule("classification", in_batch=False),
    "c": DatasetRule("reranking"),
    "f": DatasetRule("clustering", in_batch=False, symmetric=True),
    "b": DatasetRule("retrieval", in_batch=False),
}


def _schedule(name: str, batch: int = 7, smallest_tail: int | None = 2) -> Schedule:
    return Schedule(name, batch, smallest_tail, RULES)


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


@given(names, bag_sizes, batch_sizes, tails, seeds)
def test_every_schedule_takes_every_row_once_per_pass_or_counts_it(name, sizes, batch, smallest_tail, seed):
    bag, schedule = _bag(sizes), _schedule(name, batch, smallest_tail)
    for number in (0, 1):
        plan = one_pass(bag, schedule, seed, number)
        seen = Counter(np.concatenate([np.empty(0, np.int64), *(b.rows for b in plan.batches)]).tolist())
        everything = Counter(np.concatenate([np.empty(0, np.int64), *bag.values()]).tolist())
        assert seen + Counter(plan.tail.tolist()) == everything
        origin = {row: n for n, rows in bag.items() for row in rows.tolist()}
        assert Counter(origin[r] for r in plan.tail.tolist()) == Counter({n: c for n, c in plan.dropped.items() if c})
        assert all(b.epoch == number for b in plan.batches)
        if name == "example_shuffle":
            assert {b.dataset for b in plan.batches} <= {MIXED}
            assert all(len(b.rows) == batch for b in plan.batches[:-1])
        else:
            assert all({origin[r] for r in b.rows.tolist()} == {b.dataset} for b in plan.batches)
            assert all(len(b.rows) <= rows_per_batch(RULES[b.dataset].symmetric, batch) for b in plan.batches)


@given(names, bag_sizes, seeds, st.randoms(use_true_random=False))
def test_no_schedule_depends_on_the_order_of_the_bag(name, sizes, seed, random):
    bag = _bag(sizes)
    order = list(bag)
    random.shuffle(order)
    other = {n: np.array(random.sample(bag[n].tolist(), len(bag[n])), dtype=np.int64) for n in order}
    assert _same(
        whole_run(bag, _schedule(name), seed, 2, None).batches, whole_run(other, _schedule(name), seed, 2, None).batches
    )


@given(names, bag_sizes, seeds)
def test_passes_differ_and_repeat(name, sizes, seed):
    bag = _bag({n: size + 30 for n, size in sizes.items()})
    first, again, second = (one_pass(bag, _schedule(name), seed, number) for number in (0, 0, 1))
    assert _same(first.batches, again.batches)
    assert [b.rows.tolist() for b in first.batches] != [b.rows.tolist() for b in second.batches]


@given(bag_sizes, seeds)
def test_batch_shuffle_is_what_it_was(sizes, seed):
    plan = one_pass(_bag(sizes), _schedule("batch_shuffle"), seed, 3)
    assert _same(plan.batches, batch_shuffle(_bag(sizes), _schedule("batch_shuffle").sizes(), 2, seed, 3).batches)


def test_datasets_and_task_types_come_one_after_the_other():
    bag = _bag(dict.fromkeys("abcdef", 40))
    for number in (0, 1):
        order = [
            n
            for n, _ in itertools.groupby(
                b.dataset for b in one_pass(bag, _schedule("dataset_sequential"), 3, number).batches
            )
        ]
        assert order == list(RULES)
    batches = one_pass(bag, _schedule("task_sequential"), 3, 0).batches
    types = [t for t, _ in itertools.groupby(RULES[b.dataset].task_type for b in batches)]
    assert types == ["sts", "retrieval", "classification", "reranking", "clustering"]
    mixed = [b.dataset for b in batches if RULES[b.dataset].task_type == "retrieval"]
    assert len(list(itertools.groupby(mixed))) > 2  # within a type, batches are shuffled


@given(bag_sizes, seeds, st.integers(1, 3), tails)
def test_two_stages(sizes, seed, epochs, smallest_tail):
    """First retrieval and reranking that have in-batch negatives, then everything without, each ``epochs`` times."""
    bag, schedule = _bag(sizes), _schedule("two_stage", 7, smallest_tail)
    batches = whole_run(bag, schedule, seed, epochs, None).batches
    first = [b for b in batches if b.epoch < epochs]
    assert list(batches) == [*first, *(b for b in batches if b.epoch >= epochs)]
    assert {b.dataset for b in first} <= {"a", "c"}
    assert all(b.in_batch == (b.epoch < epochs) for b in batches)
    for name, rows in bag.items():
        size = schedule.sizes()[name]
        tail = len(rows) % size
        kept = len(rows) - (0 if smallest_tail is not None and tail >= smallest_tail else tail)
        taken = [
            sum(len(b.rows) for b in batches if b.dataset == name and (b.epoch < epochs) == stage)
            for stage in (True, False)
        ]
        assert taken == [epochs * kept * (name in "ac"), epochs * kept]
    assert len({(b.epoch, b.dataset, b.rows.tobytes()) for b in batches}) == len(batches)


@given(names, bag_sizes, seeds)
def test_rows_that_were_drawn_twice_come_twice(name, sizes, seed):
    bag = {n: np.repeat(rows, 2) for n, rows in _bag(sizes).items()}
    plan = one_pass(bag, _schedule(name), seed, 0)
    seen = Counter(np.concatenate([np.empty(0, np.int64), *(b.rows for b in plan.batches), plan.tail]).tolist())
    assert set(seen.values()) <= {2}
    assert len(seen) == sum(sizes.values())


@given(names, bag_sizes, batch_sizes, tails, st.integers(1, 3))
def test_the_size_of_an_epoch_is_known_without_making_it(name, sizes, batch, smallest_tail, epochs):
    schedule = _schedule(name, batch, smallest_tail)
    plan = whole_run(_bag(sizes), schedule, 5, epochs, None)
    rows, steps = epoch_size(schedule, sizes)
    assert (epochs * rows, epochs * steps) == (sum(len(b.rows) for b in plan.batches), len(plan.batches))


@given(names, bag_sizes, batch_sizes, seeds, st.sampled_from([1, 2, 4, 8]))
def test_ranks_partition_every_batch_and_differ_by_one_row(name, sizes, batch, seed, width):
    for one in one_pass(_bag(sizes), _schedule(name, batch, 1), seed, 0).batches:
        parts = [rank_rows(one.rows, rank, width) for rank in range(width)]
        assert np.concatenate(parts)[global_order([len(p) for p in parts])].tolist() == one.rows.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(names, bag_sizes, seeds, st.integers(1, 3), st.integers(1, 60))
def test_max_steps_is_a_prefix(name, sizes, seed, epochs, steps):
    bag, schedule = _bag(sizes), _schedule(name)
    whole = whole_run(bag, schedule, seed, epochs, None)
    cut = whole_run(bag, schedule, seed, epochs, steps)
    assert _same(cut.batches, whole.batches[:steps])
    assert not whole.ended_early
    if len(cut.batches) < len(whole.batches):
        assert cut.ended_early
    passes = 2 * epochs if name == "two_stage" else epochs
    each = [one_pass(bag, schedule, seed, number, number < epochs) for number in range(passes)]
    assert _same(whole.batches, tuple(b for plan in each for b in plan.batches))
    assert whole.dropped == {n: sum(p.dropped.get(n, 0) for p in each) for n in bag}


def test_an_endless_run_makes_only_the_passes_that_it_reaches():
    plan = whole_run(_bag({"a": 70}), _schedule("batch_shuffle"), 3, 10**9, 25)
    assert [b.epoch for b in plan.batches] == [0] * 10 + [1] * 10 + [2] * 5


def test_symmetric_datasets_take_half_a_batch():
    assert (rows_per_batch(False, 96), rows_per_batch(True, 96)) == (96, 48)
    assert (rows_per_batch(False, 2), rows_per_batch(True, 2)) == (2, 2)
