"""Self Positioning's merge of many task vectors (arXiv 2410.15035), one after the other along arcs of the whole model:

    V_1 = v_1;  V_i = slerp(V_{i-1}, v_i, t_i);  t_i = a_i / (mean(a_1 .. a_{i-1}) + a_i)

All V_i lie in the span of the task vectors, so the coefficients C with V = Σ C_i v_i and their derivatives follow from
the Gram matrix alone: numbers of the members' count, exact in float64, whatever the size of the model. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.gram import Grams

_SMALL_ANGLE = 3e-3  # radians; below, the series are nearer than quotients of small differences
_CANCELLED = 1e-7  # a sine below this is the rounding of float64 inner products


@dataclass(frozen=True)
class Chain:
    """``coefficients`` (M,) of the task vectors and ``jacobian`` (M, M): coefficient (row) by share (column)."""

    coefficients: np.ndarray
    jacobian: np.ndarray


@dataclass(frozen=True)
class Factor:
    """sin(s θ) / sin θ, with its derivatives by the share s and by cos θ."""

    value: float
    by_share: float
    by_cosine: float


def whole_gram(grams: Grams) -> np.ndarray:
    """(M, M) Gram matrix of the members' whole task vectors: the exact sum over tensors.

    Raises:
        BoomError: the Gram matrices were made without a base.
    """
    stacked = np.stack([grams.of(name, deltas=True) for name in grams.matrices])
    size = grams.members
    return np.array([[math.fsum(stacked[:, i, j]) for j in range(size)] for i in range(size)])


def slerp_chain(gram: np.ndarray, shares: np.ndarray) -> Chain:
    """Coefficients of the chain and their derivatives by the shares.

    Where an arc has no plane (a vector of length zero, or two that point to opposite sides) it is the straight line.

    Args:
        gram: (M, M) of the whole task vectors; shares: (M,) ``a``, all above 0. Their order is that of the chain.

    Raises:
        BoomError: a share is not above 0.
    """
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise BoomError(f"self positioning takes shares above 0, got {np.asarray(shares).tolist()}.")
    size = len(shares)
    values, jacobian = np.eye(size)[0], np.zeros((size, size))
    for i in range(1, size):
        share, by_shares = _share(shares, i)
        cosine, by_values = _cosine(gram, values, i)
        near, far = arc_factor(1 - share, cosine), arc_factor(share, cosine)
        turned = by_values @ jacobian  # cosine by shares
        by_near = near.by_cosine * turned - near.by_share * by_shares
        by_far = far.by_cosine * turned + far.by_share * by_shares
        jacobian = near.value * jacobian + np.outer(values, by_near)
        jacobian[i] += by_far
        values = near.value * values
        values[i] += far.value
    return Chain(values, jacobian)


def arc_factor(share: float, cosine: float | None) -> Factor:
    """sin(s θ) / sin θ at cos θ = ``cosine``; the straight line's s where there is no angle or it is straight."""
    if cosine is None:
        return Factor(share, 1.0, 0.0)
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if angle < _SMALL_ANGLE:
        x, curve = 1 - cosine, share * (1 - share**2)
        by_cosine = -curve * (1 / 3 + x / 9 + (7 - 3 * share**2) * x / 45)
        value = share + curve * (x / 3 + x * x / 18 + (7 - 3 * share**2) * x * x / 90)
        by_share = 1 + (1 - 3 * share**2) * x / 3
        return Factor(value, by_share, by_cosine)
    sine = math.sin(angle)
    if sine <= _CANCELLED:
        return Factor(share, 1.0, 0.0)
    part, along = math.sin(share * angle), math.cos(share * angle)
    by_cosine = (part * math.cos(angle) - share * along * sine) / sine**3
    return Factor(part / sine, angle * along / sine, by_cosine)


def _share(shares: np.ndarray, i: int) -> tuple[float, np.ndarray]:
    """t_i and its derivatives (M,) by all shares."""
    before = math.fsum(shares[:i]) / i
    total = before + shares[i]
    by_shares = np.zeros(len(shares))
    by_shares[i] = before / total**2
    by_shares[:i] = -shares[i] / total**2 / i
    return float(shares[i] / total), by_shares


def _cosine(gram: np.ndarray, values: np.ndarray, i: int) -> tuple[float | None, np.ndarray]:
    """Cosine between Σ values_k v_k and v_i, None where one has no length; and its derivatives by ``values``."""
    along = gram @ values
    square = float(values @ along)
    if square <= 0 or gram[i, i] <= 0:
        return None, np.zeros(len(values))
    length = math.sqrt(square)
    cosine = float(along[i]) / (length * math.sqrt(gram[i, i]))
    return cosine, gram[i] / (length * math.sqrt(gram[i, i])) - cosine * along / square
