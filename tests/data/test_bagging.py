"""Bags: exact shares, disjoint dev rows, rows that never move, and hashes that behave like independent uniforms."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from boom_ray.data.bagging import (
    Bag,
    Draw,
    Rows,
    bag_rows,
    derive_seed,
    dev_count,
    dev_rows,
    draw,
    membership_hash,
    threshold,
    under,
)

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)


def _rows(*sizes: int, seed: int = 0) -> Rows:
    ids = np.random.default_rng(seed).integers(0, 256, (sum(sizes), 16), dtype=np.uint8)
    dataset = np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)
    return Rows(ids, dataset, tuple(f"d{i}" for i in range(len(sizes))))


def _grown(old: Rows, more: int, seed: int) -> Rows:
    """The same rows, in other places, among ``more`` new ones of every dataset."""
    new = _rows(*[more] * len(old.names), seed=seed)
    order = np.random.default_rng(seed).permutation(len(old.ids) + len(new.ids))
    ids, dataset = np.concatenate([old.ids, new.ids]), np.concatenate([old.dataset, new.dataset])
    return Rows(ids[order], dataset[order], old.names)


def _ids(rows: Rows, chosen: dict[str, np.ndarray]) -> dict[str, set[bytes]]:
    return {name: {rows.ids[r].tobytes() for r in numbers} for name, numbers in chosen.items()}


sizes = st.lists(st.integers(0, 400), min_size=1, max_size=4)
seeds = st.integers(0, 2**31 - 1)


@given(sizes, seeds, st.booleans(), st.floats(0.001, 0.49), st.integers(2, 60))
def test_every_share_is_exact_and_dev_rows_are_in_no_bag(sizes, seed, nested, fraction, least):
    rows = _rows(*sizes, seed=seed)
    drawn = draw(rows, RATIOS, nested, (fraction, least), seed)
    whole, a, b = (dev_rows(rows, drawn, half) for half in (None, "a", "b"))
    bags = [bag_rows(rows, drawn, bag) for bag in drawn.bags]
    for index, (name, size) in enumerate(zip(rows.names, sizes, strict=True)):
        held_out = min(max(round(fraction * size), least), size // 2)
        assert len(whole[name]) == held_out == dev_count(size, fraction, least)
        assert len(a[name]) == held_out // 2
        assert sorted([*a[name], *b[name]]) == sorted(whole[name])  # the halves are disjoint and make the whole
        assert set(whole[name]) <= set(rows.of(index))
        for bag, ratio in zip(bags, RATIOS, strict=True):
            assert len(bag[name]) == round(ratio * (size - held_out))
            assert len(set(bag[name])) == len(bag[name])
            assert not set(bag[name]) & set(whole[name])
            assert set(bag[name]) <= set(rows.of(index))
        assert sorted([*bags[-1][name], *whole[name]]) == rows.of(index).tolist()


@given(st.integers(1, 120), st.integers(1, 120), st.booleans(), seeds)
def test_rows_that_are_added_move_no_old_row(size, more, nested, seed):
    old = _rows(size, size + 7, seed=seed)
    drawn = draw(old, RATIOS, nested, (0.1, 4), seed)
    new = _grown(old, more, seed + 1)
    known = {i.tobytes() for i in old.ids}
    for half in ("a", "b", None):
        before, after = _ids(old, dev_rows(old, drawn, half)), _ids(new, dev_rows(new, drawn, half))
        assert all(after[name] & known == before[name] for name in old.names)
    for bag in drawn.bags:
        before, after = _ids(old, bag_rows(old, drawn, bag)), _ids(new, bag_rows(new, drawn, bag))
        assert all(after[name] & known == before[name] for name in old.names)


def test_new_rows_join_a_bag_at_its_share():
    old, size = _rows(4000), 20000
    drawn = draw(old, RATIOS, False, (0.02, 50), 3)
    new = _rows(size, seed=9)
    out_of_dev = size - len(dev_rows(new, drawn)["d0"])
    for bag, ratio in zip(drawn.bags, RATIOS, strict=True):
        share = len(bag_rows(new, drawn, bag)["d0"]) / out_of_dev
        # the frozen threshold is the order statistic of 3920 hashes: 5 sigma of both draws
        assert abs(share - ratio) <= 5 * np.sqrt(ratio * (1 - ratio) * (1 / 3920 + 1 / out_of_dev))


def test_nested_bags_lie_inside_one_another_and_others_are_independent():
    rows = _rows(10000)
    nested = [bag_rows(rows, d, bag)["d0"] for d in [draw(rows, RATIOS, True, (0.02, 50), 1)] for bag in d.bags]
    for small, large in itertools.pairwise(nested):
        assert set(small) < set(large)
    drawn = draw(rows, (0.4, 0.4, 0.6), False, (0.02, 50), 1)
    bags = [set(bag_rows(rows, drawn, bag)["d0"]) for bag in drawn.bags]
    count = 9800
    for i, j, p, q in ((0, 1, 0.4, 0.4), (0, 2, 0.4, 0.6), (1, 2, 0.4, 0.6)):
        deviation = np.sqrt(count * p * (1 - p) * q * (1 - q))  # hypergeometric
        assert abs(len(bags[i] & bags[j]) - count * p * q) < 4 * deviation


def test_a_bag_does_not_depend_on_the_dev_draw_or_on_other_datasets():
    rows = _rows(300, 200)
    drawn = draw(rows, (0.5,), False, (0.02, 10), 1)
    alone = Rows(rows.ids[:300], rows.dataset[:300], ("d0",))
    again = draw(alone, (0.5,), False, (0.02, 10), 1)
    assert np.array_equal(bag_rows(rows, drawn, drawn.bags[0])["d0"], bag_rows(alone, again, again.bags[0])["d0"])
    seeds = [draw(rows, RATIOS, False, (0.02, 10), seed) for seed in (1, 2)]
    assert len({d.dev_seed for d in seeds} | {b.seed for d in seeds for b in d.bags}) == 2 * (1 + len(RATIOS))


def test_a_dataset_that_the_draw_has_not_met_is_in_no_bag_and_no_dev_set():
    drawn = draw(_rows(100), (0.5, 1.0), False, (0.1, 4), 1)
    later = Rows(_rows(50, seed=7).ids, np.zeros(50, np.int16), ("new",))
    assert len(dev_rows(later, drawn)["new"]) == 0
    assert all(len(bag_rows(later, drawn, bag)["new"]) == 0 for bag in drawn.bags)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=60, unique=True), st.integers(-2, 70))
def test_a_threshold_holds_for_exactly_the_count(values, count):
    hashes = np.array(values, dtype=np.uint64)
    limit = threshold(hashes, count)
    inside = under(hashes, limit)
    assert inside.sum() == min(max(count, 0), len(values))
    assert set(hashes[inside].tolist()) == set(sorted(values)[: max(count, 0)])


@pytest.mark.parametrize("kind", ["random", "counting", "one bit"])
def test_hashes_are_uniform_and_independent_between_seeds(kind):
    """Chi-square over 256 cells of a hash and over 16 x 16 cells of pairs, for ids that are random and that are not."""
    count = 1 << 16
    ids = np.zeros((count, 16), np.uint8)
    if kind == "random":
        ids = np.random.default_rng(0).integers(0, 256, (count, 16), dtype=np.uint8)
    else:
        ids[:, :4] = np.arange(count, dtype="<u4").view(np.uint8).reshape(-1, 4)
    if kind == "one bit":
        ids = ids[:, ::-1].copy()
    hashes = [membership_hash(ids, seed) for seed in (1, 2, 3, derive_seed(17, "bag", 0), derive_seed(17, "bag", 1))]
    limit = chi2.ppf(1 - 1e-6, 255)
    low = chi2.ppf(1e-6, 255)  # too even is as suspicious

    def statistic(cells: np.ndarray) -> float:
        return float(((np.bincount(cells, minlength=256) - count / 256) ** 2).sum() / (count / 256))

    for i, first in enumerate(hashes):
        assert len(np.unique(first)) == count
        for shift in (56, 28, 0):
            assert low < statistic(((first >> np.uint64(shift)) & np.uint64(255)).astype(int)) < limit
        for second in hashes[:i]:
            pairs = ((first >> np.uint64(60)) * np.uint64(16) + (second >> np.uint64(60))).astype(int)
            assert low < statistic(pairs) < limit


def test_hashes_of_a_part_are_those_of_the_whole():
    ids = _rows(50).ids
    whole = membership_hash(ids, 5)
    assert whole.dtype == np.uint64
    assert np.array_equal(membership_hash(ids[10:20], 5), whole[10:20])
    assert np.array_equal(membership_hash(ids[::3], 5), whole[::3])
    assert len(membership_hash(ids[:0], 5)) == 0


def test_seeds_are_named_by_all_their_parts():
    names = [("a",), ("b",), ("a", 0), ("a", 1), ("a", "0", 0), (0, "a"), ("a0",)]
    assert len({derive_seed(*n) for n in names}) == len(names)
    assert all(0 <= derive_seed(*n) < 2**63 for n in names)


@given(sizes, seeds, st.booleans())
def test_a_draw_reads_back_equal_from_json(sizes, seed, nested):
    rows = _rows(*sizes, seed=seed)
    drawn = draw(rows, (0.3, 1.0), nested, (0.1, 4), seed)
    again = Draw.from_json(json.loads(json.dumps(drawn.to_json())))
    assert again == drawn
    assert all(isinstance(bag, Bag) for bag in again.bags)
    for bag, copy in zip(drawn.bags, again.bags, strict=True):
        first, second = bag_rows(rows, drawn, bag), bag_rows(rows, again, copy)
        assert all(np.array_equal(first[name], second[name]) for name in rows.names)
