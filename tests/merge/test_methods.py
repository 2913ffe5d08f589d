"""Coefficients against the formulas on explicit vectors, and the properties that every weighted method has."""

from __future__ import annotations

import math

import numpy as np
import pytest

from boom_ray.config import BoomError
from boom_ray.merge.methods import Setting, tensor_coefficients
from boom_ray.merge.registry import METHODS, get_method

get_method("linear")
WEIGHTED = [n for n, m in METHODS.items() if m.weighted and m.space != "elementwise" and n != "task_arithmetic"]
MANY = [n for n in WEIGHTED if METHODS[n].members[1] > 2]
Base = np.ndarray | None
RNG = np.random.default_rng(3)
BASE = RNG.standard_normal(400)
MEMBERS = BASE + 0.2 * RNG.standard_normal((5, 400)) + 0.3 * RNG.standard_normal(400)


def coefficients(
    method: str,
    vectors: np.ndarray,
    weights: list[float],
    base: Base = None,
    scale: float = 1.0,
    **params: float,
) -> np.ndarray:
    setting = Setting(method, tuple(weights), params, scale, task_vectors=base is not None)
    shifted = vectors - base if setting.in_deltas else vectors
    return tensor_coefficients(setting, shifted @ shifted.T, base is not None)


def merged(method: str, vectors: np.ndarray, weights: list[float], base: Base = None, **params: float) -> np.ndarray:
    every = vectors if base is None else np.vstack([vectors, base])
    return coefficients(method, vectors, weights, base, **params) @ every


def some(name: str) -> tuple[np.ndarray, list[float]]:
    return (MEMBERS, [0.2, 0.4, 0.6, 0.8, 1.0]) if METHODS[name].members[1] > 2 else (MEMBERS[:2], [0.3, 0.9])


@pytest.mark.parametrize("base", [None, BASE])
def test_multislerp_is_the_formula(base: Base) -> None:
    origin = np.zeros(400) if base is None else base
    weights = np.array([0.2, 0.4, 0.6, 0.8, 1.0]) / 3
    shifted = MEMBERS - origin
    lengths = np.linalg.norm(shifted, axis=1)
    mean = weights @ (shifted / (lengths + 1e-8)[:, None])
    expected = origin + (weights @ lengths) * mean / np.linalg.norm(mean)
    assert np.allclose(merged("multislerp", MEMBERS, [0.2, 0.4, 0.6, 0.8, 1.0], base), expected, rtol=1e-12)


def test_karcher_is_where_the_weighted_logs_cancel() -> None:
    weights = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    result = merged("karcher", MEMBERS, list(weights), BASE) - BASE
    lengths = np.linalg.norm(MEMBERS - BASE, axis=1)
    assert np.linalg.norm(result) == pytest.approx(weights @ lengths, rel=1e-12)
    mean, units = result / np.linalg.norm(result), (MEMBERS - BASE) / lengths[:, None]
    cosines = units @ mean
    logs = (np.arccos(cosines) / np.sqrt(1 - cosines**2))[:, None] * (units - cosines[:, None] * mean)
    assert np.linalg.norm(weights @ logs) < 1e-12


def test_karcher_of_two_is_slerp_of_the_directions() -> None:
    units = MEMBERS[:2] / np.linalg.norm(MEMBERS[:2], axis=1)[:, None]
    for t in (0.0, 0.3, 0.5, 1.0):
        assert np.allclose(
            merged("karcher", units, [1 - t, t]), merged("slerp", units, [1 - t, t], threshold=1.0), atol=1e-13
        )


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_slerp_is_the_arc(name: str) -> None:
    a, b = MEMBERS[:2]
    angle = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for t in (0.0, 0.25, 1.0):
        expected = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
        assert np.allclose(merged(name, MEMBERS[:2], [1 - t, t]), expected, rtol=1e-12)


def test_slerp_is_linear_between_nearly_parallel_tensors_and_nuslerp_is_not() -> None:
    close = np.vstack([BASE, BASE + 1e-3 * RNG.standard_normal(400)])
    assert coefficients("slerp", close, [0.3, 0.7]).tolist() == [0.3, 0.7]
    assert not np.allclose(coefficients("nuslerp", close, [0.3, 0.7]), [0.3, 0.7], rtol=1e-9)


def test_model_stock_is_the_formula() -> None:
    shifted = MEMBERS - BASE
    lengths = np.linalg.norm(shifted, axis=1)
    cosines = [shifted[i] @ shifted[j] / lengths[i] / lengths[j] for i in range(5) for j in range(i)]
    cosine = float(np.mean(cosines))
    t = 5 * cosine / (1 + 4 * cosine)
    expected = t * MEMBERS.mean(axis=0) + (1 - t) * BASE
    assert np.allclose(merged("model_stock", MEMBERS, [1.0] * 5, BASE), expected, rtol=1e-12)


def test_linear_and_task_arithmetic() -> None:
    assert np.allclose(merged("linear", MEMBERS, [1, 2, 3, 4, 5]), np.array([1, 2, 3, 4, 5]) / 15 @ MEMBERS)
    assert np.allclose(merged("linear", MEMBERS, [1] * 5, normalize=False), MEMBERS.sum(axis=0))
    expected = BASE + 0.5 * (np.array([1, 2, 3, 4, 5]) @ (MEMBERS - BASE))
    assert np.allclose(merged("task_arithmetic", MEMBERS, [1, 2, 3, 4, 5], BASE, **{"lambda": 0.5}), expected)
    assert tensor_coefficients(Setting("passthrough", (1.0,), {"scale": 2.0}), None, False).tolist() == [2.0]


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize("name", WEIGHTED)
def test_one_hot_weights_give_exactly_that_member(name: str, base: Base) -> None:
    vectors, weights = some(name)
    for k in range(len(weights)):
        single = [0.0] * len(weights)
        single[k] = 0.7
        expected = np.zeros(len(weights) + (base is not None))
        expected[k] = 1.0
        assert coefficients(name, vectors, single, base).tolist() == expected.tolist()


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize("name", MANY)
def test_permutation_of_members_changes_no_bit(name: str, base: Base) -> None:
    weights = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
    shifted = MEMBERS - (0 if base is None else BASE)
    gram = shifted @ shifted.T
    setting = Setting(name, tuple(weights), {}, task_vectors=base is not None)
    first = tensor_coefficients(setting, gram, base is not None)
    for _ in range(5):
        order = RNG.permutation(5)
        again = tensor_coefficients(
            Setting(name, tuple(weights[order]), {}, task_vectors=base is not None),
            gram[np.ix_(order, order)],
            base is not None,
        )
        assert again[:5].tobytes() == first[order].tobytes()
        assert again[5:].tobytes() == first[5:].tobytes()


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize("name", WEIGHTED)
def test_identical_members_return_themselves(name: str, base: Base) -> None:
    vectors, weights = some(name)
    same = np.broadcast_to(vectors[0], vectors.shape)
    assert np.allclose(merged(name, same, weights, base), vectors[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", [*WEIGHTED, "model_stock", "task_arithmetic"])
def test_a_frozen_tensor_is_the_base_exactly(name: str) -> None:
    count = len(some(name)[1]) if name in WEIGHTED else 5
    frozen = np.broadcast_to(BASE, (count, 400))
    expected = [0.0] * count + [1.0]
    found = coefficients(name, frozen, [0.5] * count, BASE)
    assert found.tolist() == expected if METHODS[name].gram else np.allclose(found @ np.vstack([frozen, BASE]), BASE)


@pytest.mark.parametrize("name", WEIGHTED)
def test_all_zero_tensors_stay_zero(name: str) -> None:
    vectors, weights = some(name)
    assert not merged(name, np.zeros_like(vectors), weights).any()
    assert np.isfinite(coefficients(name, np.zeros_like(vectors), weights)).all()


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_antipodes_and_balanced_directions_give_the_weighted_mean(name: str) -> None:
    pair = np.vstack([BASE, -BASE])
    assert coefficients(name, pair, [1.0, 1.0]).tolist() == [0.5, 0.5]
    cross = np.zeros((4, 400))
    cross[0, 0], cross[1, 0], cross[2, 1], cross[3, 1] = 1, -1, 1, -1
    assert coefficients(name, cross, [1.0] * 4).tolist() == [0.25] * 4


def test_model_stock_of_opposed_members_is_the_base() -> None:
    opposed = np.vstack([BASE + MEMBERS[0], BASE - MEMBERS[0]])
    assert coefficients("model_stock", opposed, [1, 1], BASE).tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", WEIGHTED)
def test_scale_moves_the_result_away_from_the_base(name: str) -> None:
    vectors, weights = some(name)
    every = np.vstack([vectors, BASE])
    plain = coefficients(name, vectors, weights, BASE) @ every
    scaled = coefficients(name, vectors, weights, BASE, scale=1.3) @ every
    assert np.allclose(scaled, BASE + 1.3 * (plain - BASE), rtol=1e-12, atol=1e-12)
    raw = Setting(name, tuple(weights), {}, 1.3, task_vectors=False)
    found = tensor_coefficients(raw, vectors @ vectors.T, True) @ every
    assert np.allclose(found, BASE + 1.3 * (merged(name, vectors, weights) - BASE), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "weights", "base", "params", "message"),
    [
        ("multislep", [1.0], None, {}, "did you mean 'multislerp'"),
        ("multislerp", [1.0, -1.0], None, {}, "sum to zero"),
        ("multislerp", [math.nan, 1.0], None, {}, "finite"),
        ("multislerp", [1.0, 1.0], None, {"normalise_weights": True}, "did you mean 'normalize_weights'"),
        ("multislerp", [1.0, 1.0], None, {"eps": True}, "must be float"),
        ("slerp", [1.0, 1.0, 1.0], None, {}, "takes 2 members, got 3"),
        ("task_arithmetic", [1.0, 1.0], None, {}, "needs a base"),
        ("karcher", [2.0, -1.0], None, {}, "must not be negative"),
        ("ties", [1.0, 1.0], BASE, {}, "has no coefficients"),
    ],
)
def test_mistakes_are_said(
    method: str, weights: list[float], base: Base, params: dict[str, float], message: str
) -> None:
    with pytest.raises(BoomError, match=message):
        tensor_coefficients(Setting(method, tuple(weights), params), np.eye(len(weights)), base is not None)
