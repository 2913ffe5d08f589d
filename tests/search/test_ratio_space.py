"""Sets of ratios and ASHA's rule, without a model: counts, order, who is trained on."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import Bags, BoomError, parse_recipe
from boom_ray.config.ratios import RatioSearch
from boom_ray.search.ratio_space import member_number, next_jobs, ratio_space, rung_shares, steps_at

FIVE = (0.2, 0.4, 0.6, 0.8, 1.0)


def test_every_set_of_the_issue_stands_in_the_space_once():
    space = ratio_space(RatioSearch(ratios=FIVE, members=(2, 5), trials=99), Bags(ratios=(0.4, 1.0)), 3)
    assert len(space.sets) == 26 == len(set(space.sets))
    assert space.ratios(0) == [0.4, 1.0], "the recipe's own ratios come first"
    assert space.ratios(1) == list(FIVE), "then all candidates"
    assert {len(chosen) for chosen in space.sets} == {2, 3, 4, 5}
    assert space.used == [0, 1, 2, 3, 4]


def test_copies_of_a_ratio_are_members_of_their_own():
    space = ratio_space(RatioSearch(ratios=(0.5, 1.0), members=(2, 3), copies=2, trials=99), Bags(ratios=(0.3,)), 3)
    assert sorted(tuple(space.ratios(n)) for n in range(len(space.sets))) == [
        (0.5, 0.5), (0.5, 0.5, 1.0), (0.5, 1.0), (0.5, 1.0, 1.0), (1.0, 1.0)
    ]  # fmt: skip
    assert all(len(set(chosen)) == len(chosen) for chosen in space.sets)
    assert len({slot.number for slot in space.slots}) == 4


def test_a_members_number_does_not_depend_on_the_search():
    """So two searches, and the run that takes over what they found, share every member."""
    small = ratio_space(RatioSearch(ratios=(0.4, 0.8), members=(2, 2)), Bags(), 3)
    large = ratio_space(RatioSearch(ratios=FIVE, members=(2, 5), copies=2), Bags(), 9)
    numbers = {(slot.ratio, slot.copy): slot.number for slot in large.slots}
    assert all(numbers[slot.ratio, slot.copy] == slot.number for slot in small.slots)


@given(st.sets(st.integers(1, 10_000), min_size=1, max_size=40), st.integers(1, 99))
def test_numbers_never_meet(grains, copies):
    numbers = [member_number(grain / 10_000, copy) for grain in grains for copy in range(copies)]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 10_000


def test_the_seed_decides_the_order_and_fewer_trials_are_its_beginning():
    def sets(trials: int, seed: int) -> tuple[tuple[int, ...], ...]:
        return ratio_space(RatioSearch(ratios=FIVE, trials=trials), Bags(ratios=(0.3,)), seed).sets

    assert sets(12, 3) == sets(20, 3)[:12]
    assert sets(12, 3) != sets(12, 4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"ratios": [0.2, 1.2]}, "above 0|from 0.0001 to 1"),
        ({"ratios": [0.2, 0.2]}, "stands twice"),
        ({"ratios": [0.2, 0.4], "members": [2, 5]}, "goes to 5"),
        ({"members": [4, 2]}, "least <= most"),
        ({"members": [0, 2]}, "least <= most"),
        ({"ratios": []}, "ratios"),
        ({"budget_seconds": 0}, "budget_seconds"),
        ({"trials": 0}, "trials"),
        ({"eta": 1}, "eta"),
    ],
)
def test_a_space_that_is_none_is_refused_in_one_message(wrong, told):
    raw = {"name": "x", "base": {"model": "m"}, "corpus": {"datasets": [{"path": "x.jsonl"}]}, "ratio_search": wrong}
    with pytest.raises(BoomError, match=told):
        parse_recipe(raw)


def test_bags_that_are_no_ratios_and_too_many_sets_are_refused():
    with pytest.raises(BoomError, match="one member each"):
        ratio_space(RatioSearch(), Bags(kind="dataset"), 3)
    many = tuple((i + 1) / 50 for i in range(50))
    with pytest.raises(BoomError, match="too many to choose from"):
        ratio_space(RatioSearch(ratios=many, members=(2, 9)), Bags(), 3)


def test_rungs_and_steps():
    assert rung_shares(3, 3) == [1 / 9, 1 / 3, 1.0]
    assert rung_shares(1, 3) == [1.0]
    assert [steps_at(share, 90, 1) for share in rung_shares(3, 3)] == [10, 30, 90]
    assert [steps_at(share, 90, 4) for share in rung_shares(3, 3)] == [12, 32, 90], "whole updates"
    assert steps_at(0.001, 5, 2) == 2
    assert steps_at(0.5, 1, 8) == 1


def _carried_out(trials: int, rungs: int, eta: int, count: int, value) -> dict[tuple[int, int], float | None]:
    results: dict[tuple[int, int], float | None] = {}
    while jobs := next_jobs(trials, rungs, eta, results, count):
        assert not set(jobs) & set(results), "nothing is asked twice"
        assert all(rung == 0 or (number, rung - 1) in results for number, rung in jobs), "rung by rung"
        results |= {job: value(*job) for job in jobs}
    return results


def test_with_all_in_one_round_it_is_successive_halving():
    """Nine trials, eta 3: nine at the lowest rung, the best three at the next, the best one to the end."""
    results = _carried_out(9, 3, 3, 9, lambda number, rung: abs(number - 5) + number / 100)
    assert [sum(r == rung for _, r in results) for rung in range(3)] == [9, 3, 1]
    assert {n for n, r in results if r == 1} == {4, 5, 6}
    assert {n for n, r in results if r == 2} == {5}


@given(st.integers(1, 20), st.integers(1, 4), st.integers(2, 4), st.integers(1, 8), st.integers(0, 99))
def test_whatever_the_values_all_begin_and_one_ends(trials, rungs, eta, count, seed):
    rng = random.Random(seed)
    table = {(n, r): rng.choice([0.1, 0.2, 0.3, math.nan, None]) for n in range(trials) for r in range(rungs)}
    results = _carried_out(trials, rungs, eta, count, lambda n, r: table[n, r])
    assert {n for n, r in results if r == 0} == set(range(trials))
    for rung in range(1, rungs):
        before = [j for j in results if j[1] == rung - 1]
        finite = [j for j in before if table[j] is not None and math.isfinite(table[j])]
        on = [j for j in results if j[1] == rung]
        assert bool(on) == bool(finite), "a rung with a result sends somebody on, one without nobody"
        assert all((n, rung - 1) in finite for n, _ in on), "a failure is never trained on"
    again = _carried_out(trials, rungs, eta, count, lambda n, r: table[n, r])
    assert list(again) == list(results)
