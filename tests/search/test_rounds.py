"""Fixed rounds: what is proposed depends on the seed and on the values, never on which trial ends first."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from boom_ray.search.rounds import RoundSearch

FIRST = [{"weight_0": 0.2, "weight_1": 0.6, "scale": 1.0}, {"weight_0": 1.0, "weight_1": 1.0, "scale": 1.0}]
Point = dict[str, Any]


def _search(round_size: int = 4, seed: int = 3, scale: tuple[float, float] = (0.7, 1.4)) -> RoundSearch:
    return RoundSearch(2, scale, round_size, seed, FIRST)


def _objective(point: Point) -> float:
    return (point["weight_0"] - 0.3) ** 2 + (point["weight_1"] - 0.8) ** 2 + (point["scale"] - 1.1) ** 2


def _run(
    search: RoundSearch,
    rounds: int,
    order: Callable[[list[int]], Sequence[int]],
    broken: Callable[[int], str | None] = lambda number: None,
    actors: int = 4,
) -> list[Point]:
    """Drive the searcher as Tune does: ask while it gives and an actor is free, end trials in the given order."""
    points: list[Point] = []
    running: list[int] = []
    while len(points) < rounds * 4 or running:
        while len(running) < actors and len(points) < rounds * 4 and (point := search.suggest(f"t{len(points)}")):
            assert point["number"] == len(points)
            running.append(len(points))
            points.append(point)
        number = order(running)[0]
        running.remove(number)
        fault = broken(number)
        value = {"objective": math.nan if fault == "nan" else _objective(points[number])}
        search.on_trial_complete(f"t{number}", None if fault == "error" else value, error=fault == "error")
    return points


def test_proposals_do_not_depend_on_the_order_of_completion():
    expected = _run(_search(), 6, list)
    assert _run(_search(), 6, lambda running: running[::-1]) == expected
    for seed in range(5):
        chance = random.Random(seed)
        assert _run(_search(), 6, lambda running, c=chance: c.sample(running, len(running))) == expected
    for actors in (1, 2, 3):
        assert _run(_search(), 6, list, actors=actors) == expected


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[1::5])
def test_every_order_within_a_round(order):
    def place(running: list[int]) -> list[int]:
        return sorted(running, key=lambda number: order[number % 4])

    assert _run(_search(), 4, place) == _run(_search(), 4, list)


def test_failed_trials_take_their_place_in_the_round():
    faults = {3: "error", 5: "nan", 6: "error", 10: "nan"}
    expected = _run(_search(), 6, list, faults.get)
    for seed in range(3):
        chance = random.Random(seed)
        assert _run(_search(), 6, lambda running, c=chance: c.sample(running, len(running)), faults.get) == expected
    assert len(expected) == 24
    assert _run(_search(), 6, list)[:4] == expected[:4]
    # a failure is no value: once the sampler models what it has seen, other points follow
    assert _run(_search(), 6, list)[12:] != expected[12:]


def test_a_round_of_failures_is_no_end():
    points = _run(_search(), 3, list, lambda number: "error" if number < 4 else None)
    assert len({(p["weight_0"], p["weight_1"], p["scale"]) for p in points}) == 12


def test_baselines_come_first_and_all_points_lie_in_the_box():
    points = _run(_search(), 6, list)
    assert [{k: v for k, v in p.items() if k != "number"} for p in points[:2]] == FIRST
    for point in points:
        assert 0 <= point["weight_0"] <= 1
        assert 0 <= point["weight_1"] <= 1
        assert 0.7 <= point["scale"] <= 1.4
    assert [p["number"] for p in points] == list(range(24))
    fixed = _run(_search(scale=(1.0, 1.0)), 2, list)
    assert all(p["scale"] == 1.0 for p in fixed)


def test_a_full_round_gives_no_more_until_its_last_value():
    search = _search()
    for number in range(4):
        assert search.suggest(f"t{number}") is not None
    assert search.suggest("t4") is None
    for number in (2, 0, 3):
        search.on_trial_complete(f"t{number}", {"objective": 1.0})
        assert search.suggest("t4") is None
    search.on_trial_complete("t1", {"objective": 2.0})
    search.on_trial_complete("t1", {"objective": 9.0})  # told twice: the second is of no round
    assert search.suggest("t4") is not None


def test_the_seed_decides_and_the_search_gets_better():
    points = _run(_search(), 12, list)
    assert points != _run(_search(seed=4), 12, list)
    assert min(map(_objective, points[24:])) < min(map(_objective, points[:8]))


def test_a_saved_search_goes_on_where_it_was(tmp_path):
    expected = _run(_search(), 4, list)
    search = _search()
    for number in range(10):  # in the middle of a round
        if number % 4 == 0 and number:
            for done in range(number - 4, number):
                search.on_trial_complete(f"t{done}", {"objective": _objective(expected[done])})
        assert search.suggest(f"t{number}") == expected[number]
    search.save(str(tmp_path / "state"))
    again = RoundSearch(2, (0.7, 1.4), 4, 99, [])
    again.restore(str(tmp_path / "state"))
    for number in (10, 11):
        assert again.suggest(f"t{number}") == expected[number]
    for done in (9, 8, 11, 10):
        again.on_trial_complete(f"t{done}", {"objective": _objective(expected[done])})
    assert [again.suggest(f"t{n}") for n in range(12, 16)] == expected[12:]
