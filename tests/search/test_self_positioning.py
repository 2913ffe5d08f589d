"""Self Positioning: the chain of arcs in Gram space is that of the vectors, and its derivatives are exact."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from boom_ray.config import BoomError
from boom_ray.merge.gram import Grams
from boom_ray.search.coefficients import MergeSpec, point_coefficients
from boom_ray.search.self_positioning import SelfPositioning
from boom_ray.search.slerp_chain import arc_factor, slerp_chain, whole_gram

TENSORS = {"a": 40, "b": 25, "frozen": 10}


def _vectors(count: int, seed: int, common: float = 1.0) -> np.ndarray:
    """(count, 75) task vectors with a common part, as members of one base have; nothing moved in ``frozen``."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, 75)) * rng.uniform(0.5, 2, (count, 1)) + common * rng.normal(size=75)
    found[:, 65:] = 0.0
    return found


def _grams(vectors: np.ndarray, seed: int = 9) -> Grams:
    base = np.random.default_rng(seed).normal(size=vectors.shape[1])
    rows = np.vstack([vectors, base])
    ends = np.cumsum([0, *TENSORS.values()])
    parts = {name: rows[:, a:b] for name, a, b in zip(TENSORS, ends, ends[1:], strict=False)}
    return Grams(len(vectors), True, {name: part @ part.T for name, part in parts.items()}, ("x",) * len(rows))


def _chain_of_vectors(vectors: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The published formula on the vectors themselves."""
    merged = vectors[0]
    for i in range(1, len(vectors)):
        t = shares[i] / (np.mean(shares[:i]) + shares[i])
        cosine = merged @ vectors[i] / (np.linalg.norm(merged) * np.linalg.norm(vectors[i]))
        angle = math.acos(cosine)
        merged = (math.sin((1 - t) * angle) * merged + math.sin(t * angle) * vectors[i]) / math.sin(angle)
    return merged


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("common", [0.0, 1.0, 5.0])
def test_the_chain_is_that_of_the_whole_vectors(count, common):
    vectors = _vectors(count, count, common)
    shares = np.random.default_rng(3).uniform(0.2, 3, count)
    found = slerp_chain(whole_gram(_grams(vectors)), shares).coefficients
    assert np.allclose(found @ vectors, _chain_of_vectors(vectors, shares), rtol=1e-10, atol=1e-12)


def test_equal_shares_give_the_last_member_half_of_the_arc():
    """Between orthogonal unit vectors the arc at t = 1/2 has both at sin 45 degrees: of the first two, then of both."""
    half = math.sin(math.pi / 4)
    assert np.allclose(slerp_chain(np.eye(3), np.ones(3)).coefficients, [half**2, half**2, half])


def test_the_chain_keeps_the_length_of_vectors_of_one_length():
    vectors = _vectors(4, 2)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    merged = slerp_chain(vectors @ vectors.T, np.array([0.3, 2.0, 1.0, 0.1])).coefficients @ vectors
    assert np.linalg.norm(merged) == pytest.approx(1.0, rel=1e-12)


def test_identical_members_return_themselves():
    gram = np.full((4, 4), 7.0)
    found = slerp_chain(gram, np.array([1.0, 2.0, 0.5, 1.0]))
    assert math.fsum(found.coefficients) == pytest.approx(1.0, rel=1e-12)
    assert np.allclose(found.jacobian.sum(axis=0), 0.0, atol=1e-12)


def _nearly_parallel() -> np.ndarray:
    vectors = np.tile(_vectors(1, 5), (3, 1))
    vectors[1:] += 1e-4 * _vectors(2, 6, common=0.0)  # cosines of 1 - 1e-8: the series
    return vectors


ARRANGEMENTS = {
    "apart": _vectors(4, 1, 0.0),
    "alike": _vectors(5, 2, 3.0),
    "nearly parallel": _nearly_parallel(),
    "one that never moved": np.vstack([_vectors(2, 3), np.zeros((1, 75)), _vectors(1, 4)]),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_the_derivatives_are_finite_differences(name):
    vectors = ARRANGEMENTS[name]
    gram, count = vectors @ vectors.T, len(vectors)
    shares = np.random.default_rng(8).uniform(0.3, 2, count)
    found = slerp_chain(gram, shares).jacobian
    for j in range(count):
        step = 1e-5 * np.eye(count)[j]
        up, down = (slerp_chain(gram, shares + s * step).coefficients for s in (1, -1))
        assert np.allclose(found[:, j], (up - down) / 2e-5, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("angle", [1e-7, 1e-4, 2.9e-3, 3.1e-3, 0.1, 1.0, 3.0])
def test_the_factor_of_an_arc(share, angle):
    """Against 50 digits: also where sin θ is the difference of nothing, and on both sides of the series' bound."""
    from mpmath import mp, mpf

    mp.dps = 50
    cosine = math.cos(angle)

    def exact(s, c):
        theta = mp.acos(c)
        return mp.sin(s * theta) / mp.sin(theta)

    found = arc_factor(share, cosine)
    if cosine == 1.0:  # so near that float64 knows no angle
        assert (found.value, found.by_share) == (share, 1.0)
        return
    s, c = mpf(share), mpf(cosine)
    assert found.value == pytest.approx(float(exact(s, c)), rel=1e-9, abs=1e-12)
    assert found.by_share == pytest.approx(float(mp.diff(lambda v: exact(v, c), s)), rel=1e-8)
    assert found.by_cosine == pytest.approx(float(mp.diff(lambda v: exact(s, v), c)), rel=1e-8, abs=1e-9)


def test_opposite_members_are_joined_by_the_straight_line():
    gram = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert np.allclose(slerp_chain(gram, np.array([1.0, 3.0])).coefficients, [0.25, 0.75])


def test_shares_are_above_zero():
    with pytest.raises(BoomError, match="above 0"):
        slerp_chain(np.eye(2), np.array([1.0, 0.0]))
    with pytest.raises(BoomError, match="above 0"):
        slerp_chain(np.eye(2), np.array([1.0, math.nan]))


@pytest.mark.parametrize("task_vectors", [False, True])
def test_its_merge_is_a_point_like_any_other(task_vectors):
    """base + lambda Σ C_i v_i, tensor by tensor, by the code that merges to disk."""
    vectors = _vectors(3, 4)
    grams = _grams(vectors)
    form = SelfPositioning(grams)
    x = np.array([0.3, -0.5, 1.0, 0.4])
    shares, length = form.shares(x)
    assert np.allclose(shares, np.log1p(np.exp(x[:-1])))
    spec = MergeSpec((Path("m"),) * 3, Path("b"), Path("g"), "multislerp", task_vectors)
    chain = slerp_chain(whole_gram(grams), shares).coefficients
    for found in point_coefficients(grams, spec, form.point(x)).values():
        assert np.allclose(found[:-1], length * chain, rtol=1e-12)
        assert found[-1] == pytest.approx(1 - length * math.fsum(chain), abs=1e-12)


def test_it_begins_with_shares_and_length_of_one():
    shares, length = SelfPositioning(_grams(_vectors(3, 4))).shares(SelfPositioning(_grams(_vectors(3, 4))).start())
    assert np.allclose(shares, 1.0)
    assert length == pytest.approx(1.0)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_the_pull_is_the_gradient_of_loss_and_penalty(penalty):
    vectors = _vectors(4, 7)
    grams, target = _grams(vectors), _vectors(1, 8)[0]
    form = SelfPositioning(grams, penalty)

    def loss(x: np.ndarray) -> float:
        shares, length = form.shares(x)
        merged = length * _chain_of_vectors(vectors, shares)
        return 0.5 * float(np.sum((merged - target) ** 2)) + penalty * length

    x = np.array([0.3, -0.5, 1.0, 0.1, 0.4])
    shares, length = form.shares(x)
    rest = length * _chain_of_vectors(vectors, shares) - target
    base = np.random.default_rng(9).normal(size=75)
    rows = np.vstack([vectors + base, base])  # a slope is of the members themselves, not of task vectors
    ends = np.cumsum([0, *TENSORS.values()])
    slope = {name: rows[:, a:b] @ rest[a:b] for name, a, b in zip(TENSORS, ends, ends[1:], strict=False)}
    found = form.pull(x, slope)
    for j in range(len(x)):
        step = 1e-5 * np.eye(len(x))[j]
        assert found[j] == pytest.approx((loss(x + step) - loss(x - step)) / 2e-5, rel=1e-6, abs=1e-8)


def test_a_penalty_below_zero_is_refused():
    with pytest.raises(BoomError, match="at least 0"):
        SelfPositioning(_grams(_vectors(2, 1)), -0.1)
