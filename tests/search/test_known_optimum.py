"""A case whose best merge is known: members are the base plus known vectors, the loss is the squared distance of the
whole model from one mix of them. Every searcher finds that mix."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from boom_ray.merge.gram import Grams
from boom_ray.merge.methods import Setting
from boom_ray.search.coefficients import MergeSpec, point_coefficients
from boom_ray.search.descent import Descent
from boom_ray.search.forms import Direct, Form
from boom_ray.search.points import ALL, Point, even_point
from boom_ray.search.searchers import Asked, SearchPlan, minimise
from boom_ray.search.self_positioning import SelfPositioning
from boom_ray.search.space import Space
from boom_ray.search.trial_log import best_trial

GROUPS = {"embeddings.word": "embeddings", "layer.0.dense": "early", "layer.1.dense": "late", "norm.weight": "norms"}
SIZES = dict(zip(GROUPS, (120, 60, 60, 8), strict=True))
WEIGHTS, SCALE = (0.25, 0.5, 0.25), 1.2


class Case:
    """Three members over one base; ``goal`` is the model that a known point merges to."""

    def __init__(self, goal: Point, task_vectors: bool = False) -> None:
        rng = np.random.default_rng(4)
        self.rows = {}
        for name, size in SIZES.items():
            base, common = rng.normal(size=size), rng.normal(size=size)
            members = [base + 0.1 * (common + rng.normal(size=size)) for _ in range(3)]  # cosines of about 0.5
            self.rows[name] = np.stack([*members, base])
        deltas = {name: np.vstack([rows[:3] - rows[3], rows[3]]) for name, rows in self.rows.items()}
        self.grams = Grams(3, True, {name: d @ d.T for name, d in deltas.items()}, ("x",) * 4)
        self.spec = MergeSpec((Path("m"),) * 3, Path("b"), Path("g"), goal.method, task_vectors)
        self.goal = self.model(goal)
        length = math.fsum(float(np.sum((self.goal[n] - rows[3]) ** 2)) for n, rows in self.rows.items())
        self.unit = 1 / length  # the base itself has loss 1

    def model(self, point: Point) -> dict[str, np.ndarray]:
        groups = dict.fromkeys(GROUPS, ALL) if not point.grouped else GROUPS
        chosen = point_coefficients(self.grams, self.spec, point, groups)
        return {name: values @ self.rows[name] for name, values in chosen.items()}

    def loss(self, point: Point) -> float:
        model = self.model(point)
        return self.unit * math.fsum(float(np.sum((model[n] - self.goal[n]) ** 2)) for n in model)

    def slopes(self, point: Point, step: int) -> tuple[float, dict[str, np.ndarray]]:
        """The gradient of the loss is 2 (θ - goal): its inner products with members and base."""
        model = self.model(point)
        slope = {n: 2 * self.unit * rows @ (model[n] - self.goal[n]) for n, rows in self.rows.items()}
        return self.loss(point), slope


def _descend(case: Case, form: Form, trials: int = 25, rate: float = 0.05) -> list[tuple[float, Point]]:
    descent = Descent(form, case.slopes, steps=10, rate=rate)
    state, point = descent.advance()
    found = [(case.loss(point), point)]
    for _ in range(trials):
        state, point = descent.advance(state)
        found.append((case.loss(point), point))
    return found


CASE = Case(even_point("linear", WEIGHTS, SCALE))
SPACE = Space(members=3, methods=("linear",), scale=(0.6, 1.6))


@pytest.mark.parametrize(
    ("searcher", "trials", "most"), [("tpe", 120, 0.01), ("random", 600, 0.01), ("grid", 4000, 0.002)]
)
def test_the_samplers_find_it(searcher, trials, most):
    plan = SearchPlan(SPACE, searcher=searcher, trials=trials, round=4, seed=3)

    def judge(asked: Asked) -> float:
        assert asked.point is not None
        return CASE.loss(asked.point)

    best = best_trial(minimise(plan, judge))
    assert best.point is not None
    assert best.value < most * CASE.loss(even_point("linear", (1, 0, 0)))
    assert np.allclose(best.point.of(ALL), WEIGHTS, atol=0.12)
    assert best.point.scale == pytest.approx(SCALE, abs=0.12)


def test_a_grid_that_holds_it_finds_it_exactly():
    """Quarters of the simplex (15 of them) and 5 scales 0.8, 1.0 .. 1.6."""
    plan = SearchPlan(Space(members=3, methods=("linear",), scale=(0.8, 1.6)), searcher="grid", trials=75)
    trials = minimise(plan, lambda asked: CASE.loss(asked.point))
    best = best_trial(trials)
    assert len(trials) == 75
    assert best.point.of(ALL) == WEIGHTS
    assert best.point.scale == pytest.approx(SCALE)
    assert best.value < 1e-25


def test_self_positioning_finds_it():
    """Every mix of positive weights is on some chain of arcs, so without its penalty it goes to the goal itself."""
    found = _descend(CASE, SelfPositioning(CASE.grams, penalty=0.0))
    value, point = found[-1]
    assert value < 1e-6 < found[0][0]
    assert np.allclose(point.of(ALL), WEIGHTS, atol=2e-3)
    assert point.scale == pytest.approx(SCALE, abs=2e-3)


def test_the_penalty_shortens_the_merged_task_vector():
    lengths = []
    for penalty in (0.0, 0.1, 0.5):
        _, point = _descend(CASE, SelfPositioning(CASE.grams, penalty))[-1]
        base = {name: rows[3] for name, rows in CASE.rows.items()}
        lengths.append(math.sqrt(sum(np.sum((v - base[n]) ** 2) for n, v in CASE.model(point).items())))
    assert lengths[0] > lengths[1] > lengths[2] > 0


@pytest.mark.parametrize(("method", "task_vectors"), [("linear", False), ("multislerp", True), ("karcher", True)])
def test_the_direct_form_finds_it(method, task_vectors):
    case = Case(even_point(method, WEIGHTS, SCALE), task_vectors)
    form = Direct(case.grams, Setting(method, (1.0,) * 3, {}, 1.0, task_vectors), dict.fromkeys(GROUPS, ALL))
    value, point = _descend(case, form, trials=12)[-1]
    assert value < 1e-6
    assert np.allclose(point.of(ALL), WEIGHTS, atol=2e-3)
    assert point.scale == pytest.approx(SCALE, abs=2e-3)


def test_the_direct_form_finds_the_weights_of_every_tensor_group():
    wanted = {
        "embeddings": (0.6, 0.3, 0.1),
        "early": (0.2, 0.2, 0.6),
        "late": (0.1, 0.8, 0.1),
        "norms": (0.3, 0.3, 0.4),
    }
    case = Case(Point("multislerp", wanted, 0.9), task_vectors=True)
    form = Direct(case.grams, Setting("multislerp", (1.0,) * 3, {}, 1.0, True), GROUPS)
    found = _descend(case, form, trials=20)
    value, point = found[-1]
    assert value < 1e-8
    for group, weights in wanted.items():
        assert np.allclose(point.of(group), weights, atol=1e-3), group
    assert point.scale == pytest.approx(0.9, abs=1e-3)
    one = Direct(case.grams, Setting("multislerp", (1.0,) * 3, {}, 1.0, True), dict.fromkeys(GROUPS, ALL))
    assert _descend(case, one)[-1][0] > 100 * value  # one weight per member cannot


def test_a_goal_beyond_the_bounds_is_met_at_the_bound():
    case = Case(even_point("linear", WEIGHTS, 1.4))
    form = Direct(case.grams, Setting("linear", (1.0,) * 3, {}), dict.fromkeys(GROUPS, ALL), scale=(0.8, 1.1))
    _, point = _descend(case, form)[-1]
    assert point.scale == 1.1
