"""Bags of a partition: no row in two of them, together exactly the rows that they ask for, and rows that never move."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import BoomError, parse_recipe
from boom_ray.config.bags import Bags
from boom_ray.data.bag_rules import bag_rules
from boom_ray.data.bagging import Draw, Rows, bag_rows, draw, out_of_bag_rows, training_rows

DEV = (0.1, 5)


def _rows(*sizes: int, seed: int = 0) -> Rows:
    ids = np.random.default_rng(seed).integers(0, 256, (sum(sizes), 16), dtype=np.uint8)
    return Rows(ids, np.repeat(np.arange(len(sizes), dtype=np.int16), sizes), tuple(f"d{i}" for i in range(len(sizes))))


def _partition(*ratios: float, **more: object) -> Bags:
    return Bags.model_validate({"kind": "partition", "ratios": ratios, **more})


sizes = st.lists(st.integers(0, 300), min_size=1, max_size=4)
parts = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(lambda found: [n / 100 for n in found])


@given(sizes, parts, st.integers(0, 2**31 - 1))
def test_bags_are_disjoint_and_their_union_is_exact(sizes, ratios, seed):
    rows = _rows(*sizes, seed=seed)
    drawn = draw(rows, bag_rules(_partition(*ratios)), DEV, seed)
    bags = [bag_rows(rows, drawn, bag) for bag in drawn.bags]
    training = training_rows(rows, drawn)
    for name in rows.names:
        together = np.concatenate([bag[name] for bag in bags])
        assert len(set(together)) == len(together)
        assert set(together) <= set(training[name])
        assert len(together) == round(round(sum(ratios), 2) * len(training[name]))
        for ratio, bag in zip(ratios, bags, strict=True):
            assert abs(len(bag[name]) - ratio * len(training[name])) <= 1


def test_a_half_and_the_rest_are_all_rows_and_out_of_bag_of_one_another():
    rows = _rows(101, 60)
    drawn = draw(rows, bag_rules(_partition(0.5, 0.5)), DEV, 3)
    half, rest = (bag_rows(rows, drawn, bag) for bag in drawn.bags)
    outside, training = out_of_bag_rows(rows, drawn, drawn.bags[0]), training_rows(rows, drawn)
    for name in rows.names:
        assert rest[name].tolist() == outside[name].tolist()
        assert sorted([*half[name], *rest[name]]) == sorted(training[name])


def test_later_rows_move_no_old_row():
    old, new = _rows(90, 50), _rows(40, 40, seed=9)
    whole = Rows(np.concatenate([old.ids, new.ids]), np.concatenate([old.dataset, new.dataset]), old.names)
    drawn = draw(old, bag_rules(_partition(0.3, 0.3, 0.4)), DEV, 3)
    for bag in drawn.bags:
        before, after = bag_rows(old, drawn, bag), bag_rows(whole, drawn, bag)
        for name in old.names:
            assert set(before[name]) == {row for row in after[name] if row < len(old.ids)}
            assert len(after[name]) > len(before[name])


def test_a_frozen_partition_is_read_back_as_it_was():
    rows = _rows(80, 40)
    drawn = draw(rows, bag_rules(_partition(0.2, 0.5)), DEV, 3)
    again = Draw.from_json(drawn.to_json())
    for bag, same in zip(drawn.bags, again.bags, strict=True):
        assert bag == same


def test_the_members_of_a_partition_share_one_stream_and_differ_in_where_they_begin():
    first, second, third = bag_rules(_partition(0.25, 0.25, 0.5, numbers=[7, 8, 9]))
    assert (first.stream, second.stream, third.stream) == (7, 7, 7)
    assert (first.start, second.start, third.start) == (0.0, 0.25, 0.5)
    assert len({str(rule.identity()) for rule in (first, second, third)}) == 3
    (subset,) = bag_rules(Bags(ratios=(0.25,), numbers=(7,)))
    assert subset.identity() == ["subset", 0.25, 7, None, {}, 1.0], "other kinds are known by what they always were"


def test_factors_and_temperature_hold_for_the_union():
    """The bags of a partition end where subsets of the summed ratios end."""
    settings = {"dataset_ratios": {"d0": 0.5}, "temperature": 2.0}
    rows = _rows(200, 100, 50)
    drawn = draw(rows, bag_rules(_partition(0.4, 0.4, **settings)), DEV, 3)
    upto = draw(rows, bag_rules(Bags.model_validate({"ratios": [0.4, 0.8], "nested": True, **settings})), DEV, 3)
    first, second = (bag_rows(rows, drawn, bag) for bag in drawn.bags)
    small, large = (bag_rows(rows, upto, bag) for bag in upto.bags)
    for name in rows.names:
        assert first[name].tolist() == small[name].tolist()
        assert sorted([*first[name], *second[name]]) == large[name].tolist()


def test_ratios_of_a_partition_are_shares_of_one_whole():
    _partition(*itertools.repeat(0.1, 10))
    with pytest.raises(ValueError, match="sum to more than 1"):
        _partition(0.5, 0.6)
    raw = {"name": "x", "base": {"model": "m"}, "corpus": {"datasets": [{"path": "x"}]}}
    with pytest.raises(BoomError, match="only bags of kind subset can be nested"):
        parse_recipe({**raw, "bags": {"kind": "partition", "ratios": [0.5], "nested": True}})
