"""Bags: exact shares, disjoint dev rows, rows that never move, and hashes that behave like independent uniforms."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chi2, poisson

from boom_ray.config import Bags, BoomError
from boom_ray.data.bag_rules import BagRule, bag_rules, shares
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
    multinomial_counts,
    out_of_bag_rows,
    poisson_counts,
    threshold,
    training_rows,
    under,
)

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)


def _rules(ratios: tuple[float, ...] = RATIOS, nested: bool = False, **more: object) -> tuple[BagRule, ...]:
    return bag_rules(Bags(ratios=ratios, nested=nested, **more))


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
    drawn = draw(rows, _rules(nested=nested), (fraction, least), seed)
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
    drawn = draw(old, _rules(nested=nested), (0.1, 4), seed)
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
    drawn = draw(old, _rules(), (0.02, 50), 3)
    new = _rows(size, seed=9)
    out_of_dev = size - len(dev_rows(new, drawn)["d0"])
    for bag, ratio in zip(drawn.bags, RATIOS, strict=True):
        share = len(bag_rows(new, drawn, bag)["d0"]) / out_of_dev
        # the frozen threshold is the order statistic of 3920 hashes: 5 sigma of both draws
        assert abs(share - ratio) <= 5 * np.sqrt(ratio * (1 - ratio) * (1 / 3920 + 1 / out_of_dev))


def test_nested_bags_lie_inside_one_another_and_others_are_independent():
    rows = _rows(10000)
    nested = [bag_rows(rows, d, bag)["d0"] for d in [draw(rows, _rules(nested=True), (0.02, 50), 1)] for bag in d.bags]
    for small, large in itertools.pairwise(nested):
        assert set(small) < set(large)
    drawn = draw(rows, _rules((0.4, 0.4, 0.6)), (0.02, 50), 1)
    bags = [set(bag_rows(rows, drawn, bag)["d0"]) for bag in drawn.bags]
    count = 9800
    for i, j, p, q in ((0, 1, 0.4, 0.4), (0, 2, 0.4, 0.6), (1, 2, 0.4, 0.6)):
        deviation = np.sqrt(count * p * (1 - p) * q * (1 - q))  # hypergeometric
        assert abs(len(bags[i] & bags[j]) - count * p * q) < 4 * deviation


def test_a_bag_does_not_depend_on_the_dev_draw_or_on_other_datasets():
    rows = _rows(300, 200)
    drawn = draw(rows, _rules((0.5,)), (0.02, 10), 1)
    alone = Rows(rows.ids[:300], rows.dataset[:300], ("d0",))
    again = draw(alone, _rules((0.5,)), (0.02, 10), 1)
    assert np.array_equal(bag_rows(rows, drawn, drawn.bags[0])["d0"], bag_rows(alone, again, again.bags[0])["d0"])
    seeds = [draw(rows, _rules(), (0.02, 10), seed) for seed in (1, 2)]
    assert len({d.dev_seed for d in seeds} | {b.seed for d in seeds for b in d.bags}) == 2 * (1 + len(RATIOS))


def test_a_dataset_that_the_draw_has_not_met_is_in_no_bag_and_no_dev_set():
    drawn = draw(_rows(100), _rules((0.5, 1.0)), (0.1, 4), 1)
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


KINDS = st.sampled_from(
    [{}, {"nested": True}, *({"kind": "bootstrap", "resample": r} for r in ("poisson", "multinomial"))]
)


@given(sizes, seeds, KINDS)
def test_a_draw_reads_back_equal_from_json(sizes, seed, kind):
    rows = _rows(*sizes, seed=seed)
    drawn = draw(rows, _rules((0.3, 1.0), **kind), (0.1, 4), seed)
    again = Draw.from_json(json.loads(json.dumps(drawn.to_json())))
    assert again == drawn
    assert all(isinstance(bag, Bag) for bag in again.bags)
    for bag, copy in zip(drawn.bags, again.bags, strict=True):
        first, second = bag_rows(rows, drawn, bag), bag_rows(rows, again, copy)
        assert all(np.array_equal(first[name], second[name]) for name in rows.names)


@given(sizes, seeds, KINDS)
def test_out_of_bag_is_the_complement_among_training_rows(sizes, seed, kind):
    rows = _rows(*sizes, seed=seed)
    drawn = draw(rows, _rules(**kind), (0.1, 4), seed)
    train, dev = training_rows(rows, drawn), dev_rows(rows, drawn)
    for bag in drawn.bags:
        inside, outside = bag_rows(rows, drawn, bag), out_of_bag_rows(rows, drawn, bag)
        for index, name in enumerate(rows.names):
            assert sorted([*set(inside[name]), *outside[name]]) == train[name].tolist()
            assert sorted([*train[name], *dev[name]]) == rows.of(index).tolist()


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.6, 1.0, 3.7, 40.0, 900.0])
def test_poisson_counts_are_the_quantiles_of_the_hashes(rate):
    """Equal to scipy's quantile function, and within a chi-square bound of Poisson's law over 20,000 rows."""
    ids = np.zeros((20_000, 16), np.uint8)
    ids[:, :4] = np.arange(len(ids), dtype="<u4").view(np.uint8).reshape(-1, 4)
    hashes = membership_hash(ids, 11)
    counts = poisson_counts(hashes, rate)
    assert np.array_equal(counts, poisson.ppf(hashes.astype(np.float64) / 2.0**64, rate))
    edges = np.unique(poisson.ppf(np.linspace(0, 1, 21)[1:-1], rate))  # about equal mass: no thin cells
    cells = np.searchsorted(edges, counts, side="left")
    expected = len(ids) * np.diff([0.0, *poisson.cdf(edges, rate), 1.0])
    assert expected.min() > 5
    observed = np.bincount(cells, minlength=len(expected))
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(1 - 1e-6, len(expected) - 1)


def test_poisson_counts_do_not_depend_on_other_rows_and_none_is_drawn_at_rate_zero():
    hashes = membership_hash(_rows(500).ids, 3)
    assert np.array_equal(poisson_counts(hashes, 0.7)[100:200], poisson_counts(hashes[100:200], 0.7))
    assert not poisson_counts(hashes, 0.0).any()
    assert (poisson_counts(hashes, 0.7) <= poisson_counts(hashes, 0.9)).all()  # a larger rate never takes a row away


@given(st.integers(1, 120), st.integers(1, 120), seeds)
def test_a_poisson_bag_moves_no_old_row_when_rows_are_added(size, more, seed):
    old = _rows(size, size + 7, seed=seed)
    drawn = draw(old, _rules(kind="bootstrap"), (0.1, 4), seed)
    new = _grown(old, more, seed + 1)
    known = {i.tobytes() for i in old.ids}
    for bag in drawn.bags:
        before, after = _counted(old, bag_rows(old, drawn, bag)), _counted(new, bag_rows(new, drawn, bag))
        assert {key: n for key, n in after.items() if key[1] in known} == before


def _counted(rows: Rows, chosen: dict[str, np.ndarray]) -> Counter[tuple[str, bytes]]:
    return Counter((name, rows.ids[r].tobytes()) for name, numbers in chosen.items() for r in numbers)


def test_ten_percent_more_rows_join_at_their_share():
    """No old row moves; the new rows in the bag are binomial: within 5 sigma."""
    old, more = _rows(20_000, seed=1), 2_000
    for rules in (_rules(), _rules(kind="bootstrap")):
        drawn = draw(old, rules, (0.02, 50), 3)
        new = _grown(old, more, 5)
        known = {i.tobytes() for i in old.ids}
        for bag, ratio in zip(drawn.bags, RATIOS, strict=True):
            before, after = _counted(old, bag_rows(old, drawn, bag)), _counted(new, bag_rows(new, drawn, bag))
            assert {key: n for key, n in after.items() if key[1] in known} == before
            joined = sum(n for key, n in after.items() if key[1] not in known)
            fresh = sum(i.tobytes() not in known for i in new.ids[training_rows(new, drawn)["d0"]])
            variance = ratio * (1 - ratio) if bag.kind == "subset" else ratio
            assert abs(joined - ratio * fresh) <= 5 * np.sqrt(fresh * (variance * (1 + fresh / 19_600)))


@given(sizes, seeds)
def test_a_multinomial_bag_has_exactly_the_asked_draws_whatever_the_order_of_rows(sizes, seed):
    rows = _rows(*sizes, seed=seed)
    drawn = draw(rows, _rules(kind="bootstrap", resample="multinomial"), (0.1, 4), seed)
    order = np.random.default_rng(seed).permutation(len(rows.ids))
    turned = Rows(rows.ids[order], rows.dataset[order], rows.names)
    train = training_rows(rows, drawn)
    for bag, ratio in zip(drawn.bags, RATIOS, strict=True):
        inside = bag_rows(rows, drawn, bag)
        assert {name: len(r) for name, r in inside.items()} == {n: round(ratio * len(r)) for n, r in train.items()}
        assert all(set(r) <= set(train[name]) for name, r in inside.items())
        assert _counted(rows, inside) == _counted(turned, bag_rows(turned, drawn, bag))


def test_multinomial_counts_are_uniform():
    hashes = membership_hash(_rows(1000).ids, 1)
    counts = multinomial_counts(hashes, 50_000, 3)
    assert chi2.ppf(1e-6, 999) < ((counts - 50) ** 2 / 50).sum() < chi2.ppf(1 - 1e-6, 999)


def test_a_multinomial_bag_is_refused_on_another_corpus():
    old = _rows(100)
    drawn = draw(old, _rules((0.5,), kind="bootstrap", resample="multinomial"), (0.1, 4), 1)
    with pytest.raises(BoomError, match=r"drawn from 90 rows of dataset 'd0', which now has .*poisson"):
        bag_rows(_grown(old, 50, 2), drawn, drawn.bags[0])


DATASETS = (("ask", "retrieval"), ("find", "retrieval"), ("alike", "sts"))


def test_one_member_per_dataset_task_type_or_group():
    def groups(**bags: object) -> list[tuple[str, tuple[str, ...] | None, float]]:
        return [(r.label, r.datasets, r.ratio) for r in bag_rules(Bags.model_validate(bags), DATASETS)]

    assert groups(kind="dataset") == [("ask", ("ask",), 1.0), ("find", ("find",), 1.0), ("alike", ("alike",), 1.0)]
    assert groups(kind="task_type") == [("retrieval", ("ask", "find"), 1.0), ("sts", ("alike",), 1.0)]
    named = {"one": ["alike", "ask"], "two": ["find", "ask"]}
    expected = [("one", ("alike", "ask"), 0.5), ("two", ("find", "ask"), 0.5)]
    assert groups(kind="groups", groups=named, ratios=[0.5]) == expected


def test_a_member_of_a_dataset_sees_every_training_row_of_it():
    rows = _rows(50, 60, 70)
    for kind, datasets in (("dataset", [["d0"], ["d1"], ["d2"]]), ("task_type", [["d0", "d2"], ["d1"]])):
        named = [("d0", "retrieval"), ("d1", "sts"), ("d2", "retrieval")]
        drawn = draw(rows, bag_rules(Bags(kind=kind), named), (0.1, 4), 3)
        train = training_rows(rows, drawn)
        for bag, own in zip(drawn.bags, datasets, strict=True):
            inside = bag_rows(rows, drawn, bag)
            assert {n for n, r in inside.items() if len(r)} == set(own)
            assert all(np.array_equal(inside[name], train[name]) for name in own)


def test_a_dataset_in_no_bag_and_one_that_is_not_there_are_named():
    rows = _rows(50, 60)
    with pytest.raises(BoomError, match="dataset 'd1' of the corpus is in no bag"):
        draw(rows, bag_rules(Bags(kind="groups", groups={"one": ["d0"]})), (0.1, 4), 3)
    with pytest.raises(BoomError, match=r"dataset 'd10'.*did you mean 'd1'"):
        draw(rows, bag_rules(Bags(dataset_ratios={"d10": 2.0})), (0.1, 4), 3)
    with pytest.raises(BoomError, match="no dataset of the corpus is known"):
        bag_rules(Bags(kind="dataset"))


factors = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(0.0, 4.0))
counts_of = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 10**6), min_size=1)


@given(counts_of, factors, st.floats(1.0, 50.0), st.floats(0.01, 1.0))
def test_shares_follow_their_formulas(sizes, factor, temperature, ratio):
    subset = shares(BagRule("subset", ratio, 0, None, factor, temperature), sizes, {})
    smallest = min((n for n in sizes.values() if n), default=0)
    for name, n in sizes.items():
        wanted = min(1.0, ratio * factor.get(name, 1.0) * (smallest / n) ** (1 - 1 / temperature)) if n else 0.0
        assert subset[name] == pytest.approx(wanted, rel=1e-12)
    assume(any(n and factor.get(name, 1.0) > 1e-3 for name, n in sizes.items()))
    draws = shares(BagRule("poisson", ratio, 0, None, factor, temperature), sizes, {})
    assert sum(draws[name] * n for name, n in sizes.items()) == pytest.approx(ratio * sum(sizes.values()))
    pull = {name: factor.get(name, 1.0) * n ** (1 / temperature) for name, n in sizes.items() if n}
    for name, n in sizes.items():  # draws of a dataset are in proportion to factor * rows ** (1 / T)
        assert draws[name] * n * sum(pull.values()) == pytest.approx(
            ratio * sum(sizes.values()) * pull.get(name, 0.0), rel=1e-9, abs=1e-9
        )


def test_weights_of_sources_and_factors_of_the_recipe_multiply():
    sizes = {"a": 100, "b": 200}
    rule = BagRule("subset", 0.25, 0, None, {"b": 2.0})
    assert shares(rule, sizes, {"a": 3.0, "b": 0.5}) == {"a": 0.75, "b": 0.25}
    assert shares(BagRule("subset", 0.5, 0, None, {"b": 4.0}), sizes, {}) == {"a": 0.5, "b": 1.0}  # at most 1
    assert shares(BagRule("poisson", 0.5, 0, None, {"b": 4.0}), sizes, {}) == pytest.approx({"a": 1 / 6, "b": 4 / 6})


def test_a_rule_that_changes_nothing_is_no_other_rule():
    """The identity of a member: a factor of 1, another dataset's factor, the evenness of one dataset."""
    plain = bag_rules(Bags(ratios=(0.5,)))[0].identity()
    assert bag_rules(Bags(ratios=(0.5,), dataset_ratios={"a": 1.0}))[0].identity() == plain
    assert bag_rules(Bags(ratios=(0.5,), dataset_ratios={"a": 0.5}))[0].identity() != plain
    both = [
        [r.identity() for r in bag_rules(Bags(kind="dataset", **more), DATASETS)]
        for more in ({}, {"dataset_ratios": {"find": 0.5}}, {"temperature": 3.0})
    ]
    assert [a == b for a, b in zip(both[0], both[1], strict=True)] == [True, False, True]
    assert both[0] == both[2]
