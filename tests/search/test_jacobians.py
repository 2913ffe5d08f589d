"""Derivatives of the coefficients of the span methods, in Gram space, against finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from boom_ray.config import BoomError
from boom_ray.merge.gram import Grams
from boom_ray.merge.methods import Setting, tensor_coefficients
from boom_ray.search.forms import Direct
from boom_ray.search.jacobians import tensor_jacobian

SPANS = [
    ("linear", False),
    ("linear", True),
    ("task_arithmetic", True),
    ("multislerp", False),
    ("multislerp", True),
    ("karcher", False),
    ("karcher", True),
]


def _gram(count: int, seed: int, common: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 60)) * rng.uniform(0.5, 2, (count, 1)) + common * rng.normal(size=60)
    return vectors @ vectors.T


def _differences(setting: Setting, matrix: np.ndarray, step: float = 1e-5) -> np.ndarray:
    columns = []
    for j in range(len(setting.weights) + 1):
        ends = []
        for sign in (1, -1):
            moved = np.append(setting.weights, setting.scale)
            moved[j] += sign * step
            there = replace(setting, weights=tuple(moved[:-1].tolist()), scale=float(moved[-1]))
            ends.append(tensor_coefficients(there, matrix, has_base=True))
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.array(columns).T


@pytest.mark.parametrize(("method", "task_vectors"), SPANS)
@pytest.mark.parametrize("common", [0.0, 1.0, 30.0])
def test_the_derivatives_of_coefficients_are_finite_differences(method, task_vectors, common):
    for count in (2, 3, 5):
        matrix = _gram(count, count, common)
        weights = np.random.default_rng(count).uniform(0.1, 1, count)  # not normalised: methods do that themselves
        setting = Setting(method, tuple(weights.tolist()), {}, 1.2, task_vectors)
        found = tensor_jacobian(setting, matrix)
        assert np.allclose(found, _differences(setting, matrix), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
@pytest.mark.parametrize("common", [0.0, 2.0, 1000.0])
def test_the_derivatives_of_arcs_between_two(method, common):
    setting = Setting(method, (0.3, 0.7), {}, 0.9, task_vectors=True)
    matrix = _gram(2, 4, common)
    assert np.allclose(tensor_jacobian(setting, matrix), _differences(setting, matrix), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("method", "task_vectors"), SPANS)
def test_a_tensor_that_one_member_or_none_has_moved(method, task_vectors):
    matrix = _gram(3, 6, 1.0)
    matrix[1] = matrix[:, 1] = 0.0
    for gram_ in (matrix, np.zeros((3, 3))):
        setting = Setting(method, (0.2, 0.5, 0.3), {}, 1.1, task_vectors)
        assert np.allclose(tensor_jacobian(setting, gram_), _differences(setting, gram_), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["ties", "model_stock", "passthrough", "sce"])
def test_a_method_without_weights_in_the_span_is_refused(method):
    count = 1 if method == "passthrough" else 2
    grams = Grams(count, True, {"a": np.eye(count + 1)}, ("x",) * (count + 1))
    with pytest.raises(BoomError, match="in the members' span"):
        Direct(grams, Setting(method, (0.5,) * count, {}, 1.0, True), {"a": "all"})


def test_what_a_direct_form_refuses():
    grams = Grams(2, True, {"a": np.eye(3)}, ("x",) * 3)
    for bounds in ((1.2, 0.8), (0.0, 1.0), (0.5, math.inf)):
        with pytest.raises(BoomError, match="bounds"):
            Direct(grams, Setting("linear", (0.5, 0.5), {}), {"a": "all"}, bounds)
    with pytest.raises(BoomError, match="weights above 0"):
        Direct(grams, Setting("linear", (1.0, 0.0), {}), {"a": "all"})
