"""A search is a function of its seed and its values; TPE, random draws, the grid, and halving over rows."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from boom_ray.config import BoomError
from boom_ray.search.points import Point, even_point
from boom_ray.search.searchers import Asked, SearchPlan, drive, minimise, searching, survivors
from boom_ray.search.space import Space
from boom_ray.search.trial_log import Trial, best_trial

SPACE = Space(3, scale=(0.5, 1.5))
FIRST = (even_point("linear", [1, 2, 3]), even_point("linear", [1, 1, 1]))
OPTIMUM = (0.2, 0.7, 0.1)


def _value(point: Point) -> float:
    """A bowl whose lowest point is known."""
    return sum((w - o) ** 2 for w, o in zip(point.of("all"), OPTIMUM, strict=True)) + 0.3 * (point.scale - 1.1) ** 2


def _judge(asked: Asked) -> float:
    assert asked.point is not None
    return _value(asked.point)


def _plan(searcher: str = "tpe", trials: int = 24, **more) -> SearchPlan:
    return SearchPlan(SPACE, searcher, trials, **{"round": 4, "seed": 3, "first": FIRST, **more})


@pytest.mark.parametrize("searcher", ["tpe", "random", "grid"])
def test_first_points_then_proposals_in_the_space(searcher):
    trials = minimise(_plan(searcher), _judge)
    assert [t.number for t in trials] == list(range(len(trials)))
    assert len(trials) == (24 if searcher != "grid" else 22)  # 2 + 10 shares of thirds x 2 scales
    assert tuple(t.point for t in trials[:2]) == FIRST
    assert trials == minimise(_plan(searcher), _judge)
    assert len({str(t.point) for t in trials}) >= len(trials) - 1
    for trial in trials[2:]:
        assert 0.5 <= trial.point.scale <= 1.5
        assert SPACE.point(trial.parameters).of("all") == pytest.approx(trial.point.of("all"), abs=1e-12)
    if searcher != "grid":
        assert trials != minimise(_plan(searcher, seed=4), _judge)


def test_the_count_is_exact_whatever_the_rounds():
    for trials, round_size in ((1, 4), (5, 4), (7, 3), (8, 8), (3, 1)):
        assert len(minimise(_plan(trials=trials, round=round_size), _judge)) == trials


def test_tpe_learns_and_beats_random_draws():
    # the mean over seeds: a single search may be lucky
    best = {
        searcher: sum(best_trial(minimise(_plan(searcher, 60, seed=s, first=()), _judge)).value for s in range(4)) / 4
        for searcher in ("tpe", "random")
    }
    assert best["tpe"] < best["random"]
    assert best["tpe"] < 0.01
    assert best["random"] < 0.05


def test_proposals_of_a_round_do_not_see_its_values():
    def noisy(asked: Asked) -> float:
        return _judge(asked) + (-10.0 if asked.number == 5 else 0.0)

    plain, other = minimise(_plan(), _judge), minimise(_plan(), noisy)
    assert [t.point for t in plain[:8]] == [t.point for t in other[:8]]
    assert [t.point for t in plain[8:]] != [t.point for t in other[8:]]


def test_failed_trials_are_no_values_and_never_win():
    faults = {0, 3, 5, 10}
    trials = minimise(_plan(), lambda a: math.nan if a.number in faults else None if a.number == 6 else _judge(a))
    assert {t.number for t in trials if t.value is None} == faults | {6}
    assert len(trials) == 24
    best = best_trial(trials)
    assert best.value == min(t.value for t in trials if t.value is not None)
    with pytest.raises(BoomError, match="every trial"):
        best_trial(minimise(_plan(), lambda a: None))
    assert len(minimise(_plan(), lambda a: None)) == 24


def test_a_space_of_choices_and_groups():
    space = Space(2, ("linear", "karcher"), ("early", "late"), base_share=(0.0, 0.5), drop=True)
    trials = minimise(SearchPlan(space, "tpe", 40, 4, 1), lambda a: (a.point.method == "linear") + a.point.base)
    assert Counter(t.point.method for t in trials[20:])["karcher"] > 10
    assert min(t.point.base for t in trials) < 0.1
    assert any(0.0 in shares for t in trials for shares in t.point.weights.values())


def test_a_space_of_one_point_is_judged_once():
    assert len(minimise(SearchPlan(Space(1), "tpe", 10), lambda a: 1.0)) == 1
    assert len(minimise(SearchPlan(Space(1), "random", 10, first=(even_point("linear", [1]),)), lambda a: 1.0)) == 1


def _rungs(asked: Asked) -> float:
    """A proxy that is off by a little more on the lower rungs."""
    assert asked.rung is not None
    return _judge(asked) + 0.01 * math.sin(7 * asked.number) * (2 - asked.rung)


def test_halving_gives_more_rows_to_the_best():
    trials = minimise(_plan(trials=18, rungs=3, eta=3), _rungs)
    by_rung = {r: [t for t in trials if t.rung == r] for r in range(3)}
    assert [t.number for t in by_rung[0]] == list(range(18))
    for bracket in (range(9), range(9, 18)):
        for rung, share in ((0, 3), (1, 1)):
            below = [t for t in by_rung[rung] if t.number in bracket]
            kept = {t.number for t in by_rung[rung + 1] if t.number in bracket}
            best = sorted(below, key=lambda t: (t.value, t.number))[: max(1, len(below) // 3)]
            assert kept == {t.number for t in best} | ({0, 1} if 0 in bracket else set())
            assert len(best) >= share
    # what the baselines have is on all rows, so what wins is no worse than they are
    assert best_trial(trials).value <= min(t.value for t in by_rung[2] if t.number in (0, 1))
    assert trials == minimise(_plan(trials=18, rungs=3, eta=3), _rungs)


def test_survivors_go_by_value_then_number_and_a_nan_is_none():
    plan = SearchPlan(SPACE, rungs=2, eta=2)
    values = [0.3, math.nan, 0.1, 0.3, None, 0.3]
    trials = [Trial(i, "tpe", None, {}, v, rung=0) for i, v in enumerate(values)]
    assert survivors(plan, trials) == [0, 2, 3]
    assert survivors(plan, [Trial(0, "tpe", None, {}, None, rung=0)]) == []


def test_a_budget_ends_the_search_at_a_round():
    def judged(asked: list[Asked]) -> list[Trial]:
        return [Trial(a.number, "tpe", a.point, a.parameters, _judge(a), seconds={"total": 1.5}) for a in asked]

    assert len(drive(searching(_plan(budget=7.0)), judged)) == 8  # 4 trials are 6 s: one more round begins
    assert len(drive(searching(_plan(budget=6.0)), judged)) == 4
    assert len(drive(searching(_plan(budget=1e9)), judged)) == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "at least one trial"),
        ({"budget": 0.0}, "budget of 0"),
        ({"budget": math.nan}, "budget"),
        ({"searcher": "annealing"}, "unknown searcher"),
    ],
)
def test_bad_plans(settings, message):
    with pytest.raises(BoomError, match=message):
        _plan(**settings)
    with pytest.raises(BoomError, match="a grid over this space"):
        minimise(_plan("grid", 3), _judge)
