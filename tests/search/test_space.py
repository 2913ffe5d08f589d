"""The space: every proposal is on the simplex and in its bounds, and a space without points is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import BoomError, parse_recipe
from boom_ray.config.search import SEARCHABLE
from boom_ray.merge.registry import METHODS, get_method
from boom_ray.search.points import even_point
from boom_ray.search.space import Space, bounded


@st.composite
def spaces(draw):
    members = draw(st.integers(1, 6))
    low = draw(st.sampled_from([0.0, 0.5 / members, 1 / members]))
    high = draw(st.sampled_from([1.0, 1.0, (1 + 0.4 * (members - 1)) / members]))
    return Space(
        members,
        draw(st.sampled_from([("linear",), ("linear", "karcher")])),
        draw(st.sampled_from([("all",), ("embeddings", "late")])),
        draw(st.sampled_from([(1.0, 1.0), (0.5, 1.5)])),
        (low, high),
        draw(st.sampled_from([None, (0.0, 0.5)])),
        drop=low == 0 and draw(st.booleans()),
    )


@given(spaces(), st.integers(0, 2**32))
def test_every_proposal_is_a_point_in_the_bounds(space, seed):
    rng = np.random.default_rng(seed)
    parameters = {
        d.name: str(rng.choice(d.choices)) if d.choices else float(rng.uniform(d.low, d.high))
        for d in space.dimensions()
    }
    point = space.point(parameters)
    assert list(point.weights) == list(space.groups)
    for shares in point.weights.values():
        assert math.fsum(shares) == pytest.approx(1, abs=1e-12)
        assert all(space.weights[0] - 1e-12 <= share <= space.weights[1] + 1e-12 for share in shares)
    assert space.scale[0] <= point.scale <= space.scale[1]
    again = space.point(space.parameters(point))
    assert (again.scale, again.base, again.method) == (point.scale, point.base, point.method)
    for group, shares in point.weights.items():
        assert again.weights[group] == pytest.approx(shares, abs=1e-9)


def test_members_drop_out_exactly():
    space = Space(3, drop=True)
    assert [d.low for d in space.dimensions()] == [-0.25] * 3
    assert space.point({"weight_0": -0.1, "weight_1": 0.5, "weight_2": 0.5}).of("all") == (0.0, 0.5, 0.5)
    alone = space.point({"weight_0": -0.2, "weight_1": -0.1, "weight_2": -0.2})
    assert alone.of("all") == (0.0, 1.0, 0.0)  # somebody has to stay
    assert Space(2).point({"weight_0": 0.0, "weight_1": 0.0}).of("all") == (1.0, 0.0)


def test_what_is_fixed_is_no_dimension():
    assert Space(1).dimensions() == []
    assert [d.name for d in Space(2, scale=(0.5, 1.5)).dimensions()] == ["weight_0", "weight_1", "scale"]
    names = [d.name for d in Space(2, ("linear", "karcher"), ("a", "b"), base_share=(0.0, 0.2)).dimensions()]
    assert names == ["a/weight_0", "a/weight_1", "b/weight_0", "b/weight_1", "base_share", "method"]
    assert Space(2, scale=(1.2, 1.2)).point({"weight_0": 1.0, "weight_1": 1.0}).scale == 1.2


def test_a_point_outside_is_moved_inside():
    space = Space(2, ("karcher",), scale=(1.1, 1.4), weights=(0.3, 1.0))
    point = space.point(space.parameters(even_point("linear", [0, 1])))
    assert point.method == "karcher"
    assert point.scale == 1.1
    assert point.of("all") == pytest.approx((0.3, 0.7))


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_bounded_shares_are_the_nearest(raw, low, high):
    total = math.fsum(raw)
    shares, count = [r / total for r in raw], len(raw)
    low, high = low / count, 1 / count + high * (1 - 1 / count)
    found = bounded(shares, low, high)
    assert math.fsum(found) == pytest.approx(1, abs=1e-9)
    assert all(low - 1e-12 <= f <= high + 1e-12 for f in found)
    moved = {round(f - s, 9) for f, s in zip(found, shares, strict=True) if low + 1e-9 < f < high - 1e-9}
    assert max(moved, default=0) - min(moved, default=0) <= 2e-9  # one number moves all that are not at a bound


def test_grids_are_the_finest_that_fit():
    assert [p.of("all") for p in Space(2).grid(3)] == [(1, 0), (0.5, 0.5), (0, 1)]
    assert len(Space(3).grid(20)) == 15  # fourths: 15 points; fifths would be 21
    points = Space(2, scale=(0.5, 1.5)).grid(9)
    assert len(points) == 9
    assert {p.scale for p in points} == {0.5, 1.0, 1.5}
    assert len(set(map(str, points))) == 9
    assert [p.scale for p in Space(2, scale=(0.5, 1.5)).grid(2)] == [1.0, 1.0]
    both = Space(2, ("linear", "karcher"), ("a", "b")).grid(20)
    assert len(both) == 18
    with pytest.raises(BoomError, match="at least 2 points"):
        Space(2).grid(1)
    with pytest.raises(BoomError, match=r"search\.trials"):
        Space(5, groups=tuple("abcdef")).grid(100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, "empty"),
        ({"methods": ()}, "empty"),
        ({"groups": ()}, "empty"),
        ({"scale": (1.4, 0.7)}, "low first"),
        ({"scale": (0.0, 1.0)}, "above 0"),
        ({"scale": (0.5, math.nan)}, "no number lies"),
        ({"weights": (0.5, 1.0)}, "outside the simplex"),
        ({"weights": (0.0, 0.2)}, "outside the simplex"),
        ({"weights": (-0.1, 1.0)}, "outside the simplex"),
        ({"weights": (0.0, 1.5)}, "outside the simplex"),
        ({"weights": (0.6, 0.4)}, "low first"),
        ({"base_share": (0.0, 1.0)}, "base_share"),
        ({"methods": ("ties",)}, "not in the span"),
        ({"methods": ("passthrough",)}, "not in the span"),
        ({"methods": ("nuslerp",)}, "takes 2 members"),
        ({"methods": ("lineer",)}, "did you mean 'linear'"),
    ],
)
def test_a_space_without_points_is_refused(settings, message):
    with pytest.raises(BoomError, match=message):
        Space(**{"members": 3, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "trials"),
        ({"budget_seconds": 0}, "budget_seconds"),
        ({"scale": [1.4, 0.7]}, "low <= high"),
        ({"weights": [0.5, 0.1]}, "simplex"),
        ({"weights": [0, 0]}, "simplex"),
        ({"base_share": [0.5, 1]}, "base_share"),
        ({"methods": ["ties"]}, "not in the span"),
        ({"methods": ["linear", "linear"]}, "twice"),
        ({"drop_members": True, "weights": [0.1, 1]}, "drop_members"),
        ({"searcher": "gradient", "halving": {}}, "halving"),
        ({"searcher": "gradient", "base_share": [0, 0.1]}, "base_share"),
        ({"searcher": "self_positioning", "groups": "coarse"}, "self_positioning"),
        ({"searcher": "annealing"}, "searcher"),
        ({"halving": {"rungs": 1}}, "rungs"),
    ],
)
def test_a_recipe_with_a_bad_search_is_refused(settings, message):
    raw = {"name": "x", "base": {"model": "m"}, "corpus": {"datasets": [{"path": "x"}]}, "search": settings}
    with pytest.raises(BoomError, match=message) as error:
        parse_recipe(raw)
    assert "search" in str(error.value)


def test_the_recipe_knows_the_methods_that_can_be_searched():
    get_method("linear")
    known = {name for name, method in METHODS.items() if method.space != "elementwise" and name != "passthrough"}
    assert set(SEARCHABLE) == known
