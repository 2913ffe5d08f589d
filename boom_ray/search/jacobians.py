"""How the coefficients of the span methods move with merge weights and scale: their derivatives, in Gram space. Pure.

The coefficients themselves are those of :mod:`boom_ray.merge.methods`; here is one derivative beside each of its
methods that take weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.methods import Setting, tensor_coefficients
from boom_ray.merge.registry import get_method
from boom_ray.search.slerp_chain import arc_factor

# gram (M, M), weights (M,), the coefficients (M,) that they give -> (M, M): coefficient (row) by weight (column)
Derivative = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
_CANCELLED = 1e-7  # as in merge.span: below this, a sum of unit vectors has no direction and the mean is taken
_SLERP_THRESHOLD = 0.9995  # slerp's default: above this cosine it is linear
_SERIES = 1e-5


def tensor_jacobian(setting: Setting, gram: np.ndarray | None) -> np.ndarray:
    """(M + 1, M + 1): coefficients over the members and the base (rows) by weights and scale (columns) of one tensor.

    Args:
        setting: its parameters are the method's defaults; gram: as for ``tensor_coefficients``.

    Raises:
        BoomError: the method has no coefficients or takes no weights.
    """
    derivative = derivative_of(setting.method)
    count, weights = len(setting.weights), np.asarray(setting.weights, np.float64)
    found = np.zeros((count + 1, count + 1))
    values = tensor_coefficients(replace(setting, scale=1.0), gram, has_base=True)[:count]
    found[:count, count] = values
    frozen = gram is not None and setting.in_deltas and not np.diagonal(gram).any()
    if not frozen:
        matrix = np.zeros((0, 0)) if gram is None else gram
        found[:count, :count] = setting.scale * derivative(matrix, weights, values)
    if setting.in_deltas:
        found[count] = -found[:count].sum(axis=0)
    else:
        found[count, count] = -1.0
    return found


def derivative_of(method: str) -> Derivative:
    """The derivative of a method's coefficients by its weights.

    Raises:
        BoomError: it has none: unknown, decides element by element, or takes no weights.
    """
    get_method(method)
    if method not in _DERIVATIVES:
        raise BoomError(
            f"a gradient search descends through the weights of a merge in the members' span, and {method} has none. "
            f"Choose {', '.join(_DERIVATIVES)}."
        )
    return _DERIVATIVES[method]


def _linear(gram: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _mean(weights)


def _mean(weights: np.ndarray) -> np.ndarray:
    """Of w / Σw."""
    total = math.fsum(weights)
    return (np.eye(len(weights)) - np.outer(weights / total, np.ones(len(weights)))) / total


def _task_arithmetic(gram: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.eye(len(weights))


def _multislerp(gram: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of d S / L with d = w / (l + eps), S = Σ w l and L = |Σ d t|."""
    normal, shares = _mean(weights), weights / math.fsum(weights)
    lengths = _lengths(gram)
    inverse = np.where(lengths > 0, 1 / (lengths + 1e-8), 0.0)
    direction = shares * inverse
    along = gram @ direction
    length = math.sqrt(max(0.0, float(direction @ along)))
    if length <= _CANCELLED:
        return normal
    mean = float(shares @ lengths)
    turned = np.diag(inverse * mean / length) + np.outer(direction, lengths / length)
    return (turned - np.outer(direction, along * inverse * mean / length**3)) @ normal


def _karcher(gram: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """By the implicit function theorem: the mean x on the sphere solves Σ s_i log_x(u_i) = 0.

    In coefficients over the unit vectors u, with cosines c_i = x·u_i and φ(c) = θ / sin θ, that is
    F_k = s_k φ_k - x_k Σ s_i φ_i c_i = 0 (times the Gram matrix of u), with x of length 1.
    """
    normal, shares = _mean(weights), weights / math.fsum(weights)
    lengths = _lengths(gram)
    there = np.flatnonzero((lengths > 0) & (shares > 0))
    unit, some = lengths[there], shares[there]
    cosines = gram[np.ix_(there, there)] / np.outer(unit, unit)
    if len(there) == 0 or some @ cosines @ some <= _CANCELLED**2:
        return normal
    mean_length = float(shares @ lengths)
    x = values[there] * unit / mean_length
    part = some / some.sum()
    by_part = _mean_by_shares(cosines, part, x)
    by_shares = np.zeros((len(there), len(weights)))
    by_shares[:, there] = by_part @ (np.eye(len(there)) - np.outer(part, np.ones(len(there)))) / some.sum()
    found = np.zeros((len(weights), len(weights)))
    found[there] = (by_shares * mean_length + np.outer(x, lengths)) / unit[:, None]
    return found @ normal


def _mean_by_shares(cosines: np.ndarray, shares: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Derivative of the mean's coefficients over the unit vectors by their shares."""
    here = cosines @ x
    stretch, bend = _stretch(here)
    pull = float(np.sum(shares * stretch * here))
    by_x = (shares * bend)[:, None] * cosines - pull * np.eye(len(x))
    by_x -= np.outer(x, (shares * (bend * here + stretch)) @ cosines)
    by_share = np.diag(stretch) - np.outer(x, stretch * here)
    left = np.vstack([cosines @ by_x, here[None]])
    right = -np.vstack([cosines @ by_share, np.zeros((1, len(x)))])
    return np.linalg.lstsq(left, right, rcond=None)[0]


def _stretch(cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """φ(c) = θ / sin θ and its derivative by c = cos θ."""
    c = np.clip(cosine, -1 + 1e-12, 1.0)
    x = 1 - c
    near = x < _SERIES
    square = np.where(near, 1.0, 1 - c * c)
    value = np.where(near, 1 + x / 3 + 2 * x * x / 15, np.arccos(c) / np.sqrt(square))
    slope = np.where(near, -1 / 3 - 4 * x / 15, (c * value - 1) / square)
    return value, slope


def _slerp(gram: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _arc(gram, weights, _SLERP_THRESHOLD)


def _nuslerp(gram: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _arc(gram, weights, math.inf)


def _arc(gram: np.ndarray, weights: np.ndarray, threshold: float) -> np.ndarray:
    normal, shares = _mean(weights), weights / math.fsum(weights)
    product = math.sqrt(gram[0, 0] * gram[1, 1])
    cosine = float(gram[0, 1] / product) if product > 0 else None
    if cosine is None or abs(cosine) > threshold:
        return normal
    return np.diag([arc_factor(float(share), cosine).by_share for share in shares]) @ normal


def _lengths(gram: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.diagonal(gram), 0.0))


_DERIVATIVES: dict[str, Derivative] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
}
