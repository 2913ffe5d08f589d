"""Closed-form merges by their formulas, and a whole search on a landscape whose best merge is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from boom_ray.config import BoomError
from boom_ray.search.baselines import DescentPlan, Outcome, Setup, closed_forms, cocktail, whole_search
from boom_ray.search.points import Point
from boom_ray.search.searchers import Asked, SearchPlan, drive
from boom_ray.search.space import Space
from boom_ray.search.trial_log import Trial

RATIOS = (0.2, 0.6, 1.0)
NAMES = ["base", "ratio", "uniform", "best member", "cocktail", "model stock", "greedy soup", "searched"]
MEMBERS = np.array([[1.0, 0.2, 0.0], [0.1, 1.0, 0.0], [-0.6, -0.5, 0.9]])  # task vectors
TARGET = np.array([0.5, 0.7, 0.05])


def _loss(point: Point | None, half: str = "a") -> float:
    place = np.zeros(3) if point is None else point.scale * np.array(point.of("all")) @ MEMBERS
    return float(((place - TARGET) ** 2).sum()) + (0.001 if half == "b" else 0.0)


class World:
    """Judges by a quadratic loss; a descent moves its point along the slope."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.broken: set[str] = set()

    def __call__(self, batch: list[Asked]) -> list[Trial]:
        self.asked += batch
        return [self._trial(a) for a in batch]

    def _trial(self, asked: Asked) -> Trial:
        point, parameters = asked.point, dict(asked.parameters)
        if asked.what == "trial" and point is None:
            step = parameters.get("step", -1) + 1
            parameters = {"step": step}
            point = Point("linear", {"all": (0.5, 0.5, 0.0)}, 1 + 0.1 * step)
        value = None if asked.searcher in self.broken else _loss(point, "b" if asked.what == "half_b" else "a")
        return Trial(asked.number, asked.searcher, point, parameters, value, seconds={"total": 1.0}, error=None)


def _setup(trials: int = 30, searcher: str = "tpe") -> Setup:
    return Setup(SearchPlan(Space(3, scale=(0.5, 1.5)), searcher, trials, 5, 1), "linear", RATIOS)


def _search(setup: Setup, world: World | None = None) -> Outcome:
    return drive(whole_search(setup), world or World())


def test_the_table_has_every_baseline_and_what_was_found():
    outcome = _search(_setup())
    rows = {row.baseline.name: row for row in outcome.rows}
    assert list(rows) == NAMES
    for name, row in rows.items():
        assert row.a.value == _loss(row.baseline.point), name
        assert row.b.value == _loss(row.baseline.point, "b"), name
    assert rows["base"].baseline.point is None
    assert rows["ratio"].baseline.point.of("all") == pytest.approx([r / 1.8 for r in RATIOS])
    assert rows["uniform"].baseline.point.of("all") == pytest.approx([1 / 3] * 3)
    assert rows["model stock"].baseline.point.method == "model_stock"
    assert rows["searched"].a == outcome.best
    assert outcome.best.value == min(t.value for t in outcome.trials)
    assert len(outcome.trials) == 30
    assert outcome.best.value < min(r.a.value for n, r in rows.items() if n != "searched")


def test_best_member_and_cocktail_follow_the_members_alone():
    outcome = _search(_setup())
    alone = [m.value for m in outcome.members]
    assert alone == [_loss(Point("linear", {"all": tuple(float(i == j) for j in range(3))})) for i in range(3)]
    rows = {row.baseline.name: row for row in outcome.rows}
    assert rows["best member"].baseline.point.of("all")[int(np.argmin(alone))] == 1.0
    soft = np.exp(-np.array(alone) / 5.0)
    assert rows["cocktail"].baseline.point.of("all") == pytest.approx(soft / soft.sum())
    assert cocktail([1.0, 1.0, math.inf], 0.5) == [1.0, 1.0, 0.0]
    assert "5" in rows["cocktail"].baseline.how


def _even(places: tuple[int, ...]) -> float:
    return _loss(Point("linear", {"all": tuple((i in places) / len(places) for i in range(3))}))


def test_greedy_soup_takes_members_from_the_best_down():
    row = next(r for r in _search(_setup()).rows if r.baseline.name == "greedy soup")
    order = sorted(range(3), key=lambda i: _even((i,)))
    soup: tuple[int, ...] = (order[0],)
    for place in order[1:]:
        if _even((*soup, place)) <= _even(soup):
            soup = (*soup, place)
    kept = {i for i, w in enumerate(row.baseline.point.of("all")) if w > 0}
    assert kept == set(soup)
    assert row.a.value == pytest.approx(_even(soup))
    assert row.a.value <= min(_even((i,)) for i in range(3))


def test_ties_among_members_go_to_the_lower_number():
    members = [Trial(i, f"member-{i}", None, {}, 0.5) for i in range(3)]
    best = next(b for b in closed_forms(_setup(), members) if b.name == "best member")
    assert best.point.of("all") == (1.0, 0.0, 0.0)


def test_a_member_that_fails_is_no_baseline_and_all_failing_is_an_error():
    world = World()
    world.broken = {"member-1"}
    rows = {row.baseline.name: row for row in _search(_setup(), world).rows}
    assert rows["cocktail"].baseline.point.of("all")[1] == 0
    assert rows["best member"].baseline.point.of("all")[1] == 0
    assert rows["greedy soup"].baseline.point.of("all")[1] == 0
    world.broken = {f"member-{i}" for i in range(3)}
    with pytest.raises(BoomError, match="no member could be judged"):
        _search(_setup(), world)
    world.broken = {"tpe"}
    with pytest.raises(BoomError, match="every trial of the search failed"):
        _search(_setup(), world)


def test_one_member_has_fewer_baselines():
    setup = Setup(SearchPlan(Space(1, scale=(0.5, 1.5)), "random", 6, 2, 1), "linear", (1.0,))

    def judge(batch: list[Asked]) -> list[Trial]:
        return [Trial(a.number, a.searcher, a.point, a.parameters, abs((a.point.scale if a.point else 0) - 1.2))
                for a in batch]  # fmt: skip

    outcome = drive(whole_search(setup), judge)
    assert [r.baseline.name for r in outcome.rows] == ["base", "ratio", "uniform", "best member", "searched"]
    assert len(outcome.trials) == 6


def test_a_descent_goes_on_from_its_last_parameters_and_ends_at_a_failure():
    world = World()
    setup = Setup(DescentPlan("gradient", 5), "linear", RATIOS)
    outcome = _search(setup, world)
    assert [t.parameters["step"] for t in outcome.trials] == [0, 1, 2, 3, 4]
    asked = [a.parameters for a in world.asked if a.what == "trial"]
    assert asked == [{}, {"step": 0}, {"step": 1}, {"step": 2}, {"step": 3}]
    assert outcome.best.point.scale == min((_loss(t.point), t.point.scale) for t in outcome.trials)[1]
    assert len(_search(Setup(DescentPlan("gradient", 50, budget=3.0), "linear", RATIOS)).trials) == 3


def test_nothing_is_asked_twice():
    world = World()
    _search(_setup(), world)
    places = [a.place for a in world.asked]
    assert len(set(places)) == len(places)
    kinds = [kind for kind, _ in itertools.groupby(a.what for a in world.asked)]
    assert kinds == ["member", "baseline", "greedy", "trial", "half_b"]
