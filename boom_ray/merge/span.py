"""Merge methods in the members' span, as mathematics: from a Gram matrix and weights to the coefficients of Σ c_i t_i.

A method sees the Gram matrix (K, K) of K vectors (raw tensors, or task vectors member - base) and a weight per vector,
and returns one coefficient per vector. Sums are exact (``fsum``), so the order of members changes no bit. A vector of
length zero has no direction: it takes no part in finding one. Where directions cancel, a method falls back to the
weighted mean; docs/merging.md has the table.
"""

from __future__ import annotations

import math

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.registry import method

_CANCELLED = 1e-7  # a sum of unit vectors shorter than this is the rounding of float64 inner products


@method("linear", gram=False)
def linear(gram: np.ndarray, weights: np.ndarray, *, normalize: bool = True) -> np.ndarray:
    """Weighted mean (model soup, arXiv 2203.05482); without ``normalize`` the weighted sum."""
    return _normalised(weights, "linear") if normalize else weights


@method("task_arithmetic", space="delta", gram=False)
def task_arithmetic(
    gram: np.ndarray, weights: np.ndarray, *, normalize: bool = False, lambda_: float = 1.0
) -> np.ndarray:
    """base + lambda Σ w_i (member_i - base) (arXiv 2212.04089)."""
    return lambda_ * (_normalised(weights, "task_arithmetic") if normalize else weights)


@method("passthrough", space="raw", gram=False, members=(1, 1), weighted=False)
def passthrough(gram: np.ndarray, weights: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """The only member, times ``scale``."""
    return np.array([scale])


@method("multislerp")
def multislerp(
    gram: np.ndarray, weights: np.ndarray, *, normalize_weights: bool = True, eps: float = 1e-8
) -> np.ndarray:
    """mergekit's Multi-SLERP, as BOOM uses it: direction of the weighted mean of unit vectors, at the mean length.

    u_i = t_i / (|t_i| + eps);  out = (Σ w_i |t_i|) M / |M|  with  M = Σ w_i u_i. (Its tangent-space step is zero
    identically: docs/merging.md.)
    """
    weights = _normalised(weights, "multislerp") if normalize_weights else weights
    lengths = _lengths(gram)
    direction = np.where(lengths > 0, weights / (lengths + eps), 0.0)
    length = _norm(gram, direction)
    if length <= max(eps, _CANCELLED):
        return weights
    return direction * (math.fsum(weights * lengths) / length)


@method("karcher")
def karcher(gram: np.ndarray, weights: np.ndarray, *, max_iter: int = 1000, tol: float = 1e-15) -> np.ndarray:
    """Weighted Karcher (Fréchet) mean of the directions on the unit sphere, at the weighted mean length.

    Iterates x <- exp_x(Σ w_i log_x u_i) on coefficients alone until no coefficient moves by ``tol``: the converged,
    weighted mean. (mergekit stops after 10 steps and ignores weights.)
    """
    if (weights < 0).any():
        raise BoomError("karcher: weights must not be negative; a mean on the sphere has none.")
    weights = _normalised(weights, "karcher")
    lengths = _lengths(gram)
    valid = (lengths > 0) & (weights > 0)
    unit = np.where(valid, 1.0 / np.where(valid, lengths, 1.0), 0.0)
    cosines = gram * np.outer(unit, unit)
    np.fill_diagonal(cosines, valid.astype(float))
    shares = np.where(valid, weights, 0.0)
    start = _norm(cosines, shares)
    if start <= _CANCELLED:
        return weights
    mean = shares / start
    shares = shares / math.fsum(shares)
    for _ in range(max_iter):
        moved = _karcher_step(cosines, shares, mean)
        change = np.abs(moved - mean).max()
        mean = moved
        if change <= tol:
            break
    return mean * unit * math.fsum(weights * lengths)


def _karcher_step(cosines: np.ndarray, shares: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """One step of the mean's fixed point; all vectors are coefficients over the unit vectors."""
    size = len(mean)
    tangent: list[list[float]] = [[] for _ in range(size)]
    for i in np.flatnonzero(shares):
        cosine = math.fsum(cosines[i] * mean)
        offset = -cosine * mean
        offset[i] += 1.0
        sine = _norm(cosines, offset)
        stretch = shares[i] * (math.atan2(sine, cosine) / sine if sine > _CANCELLED else 1.0)
        for k in range(size):
            tangent[k].append(stretch * offset[k])
    step = np.array([math.fsum(terms) for terms in tangent])
    length = _norm(cosines, step)
    sinc = math.sin(length) / length if length > 0 else 1.0
    moved = math.cos(length) * mean + sinc * step
    return moved / _norm(cosines, moved)


@method("slerp", members=(2, 2))
def slerp(gram: np.ndarray, weights: np.ndarray, *, threshold: float = 0.9995) -> np.ndarray:
    """Spherical interpolation of two tensors at t = w_1 / (w_0 + w_1); linear where |cos| exceeds ``threshold``."""
    share = _normalised(weights, "slerp")
    return _arc(gram, share, threshold)


@method("nuslerp", members=(2, 2))
def nuslerp(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spherical interpolation of two tensors at t = w_1 / (w_0 + w_1), linear only where they are parallel."""
    share = np.array([0.5, 0.5]) if abs(math.fsum(weights)) < 1e-6 else _normalised(weights, "nuslerp")
    return _arc(gram, share, math.inf)


def _arc(gram: np.ndarray, share: np.ndarray, threshold: float) -> np.ndarray:
    lengths = _lengths(gram)
    product = lengths[0] * lengths[1]
    if product == 0:
        return share
    cosine = min(1.0, max(-1.0, gram[0, 1] / product))
    sine = _norm(gram, np.array([1.0, -gram[0, 1] / gram[1, 1]])) / lengths[0]
    if abs(cosine) > threshold or sine <= _CANCELLED:
        return share
    angle = math.atan2(sine, cosine)
    return np.array([math.sin(share[0] * angle), math.sin(share[1] * angle)]) / math.sin(angle)


@method("model_stock", space="delta", members=(2, 10_000), weighted=False)
def model_stock(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Towards the members' mean by t = N cos / (1 + (N-1) cos), cos the mean over pairs (arXiv 2403.19522).

    Weights are not used. Members that cancel (the denominator is zero) give the base.
    """
    count = len(gram)
    lengths = _lengths(gram)
    pairs = [(i, j) for i in range(count) for j in range(i) if lengths[i] > 0 and lengths[j] > 0]
    cosines = [min(1.0, max(-1.0, gram[i, j] / (lengths[i] * lengths[j]))) for i, j in pairs]
    cosine = math.fsum(cosines) / (count * (count - 1) / 2)
    denominator = 1 + (count - 1) * cosine
    factor = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return np.full(count, factor / count)


def _lengths(gram: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.diagonal(gram), 0.0))


def _norm(gram: np.ndarray, coefficients: np.ndarray) -> float:
    """Length of Σ c_i t_i."""
    return math.sqrt(max(0.0, math.fsum((np.outer(coefficients, coefficients) * gram).ravel())))


def _normalised(weights: np.ndarray, name: str) -> np.ndarray:
    total = math.fsum(weights)
    if abs(total) < 1e-12:
        raise BoomError(
            f"{name}: the weights {weights.tolist()} sum to zero and cannot be normalised. Change a weight."
        )
    return weights / total
