"""Self Positioning (Li et al. 2024, arXiv 2410.15035) as a form of the gradient search. Pure."""

from __future__ import annotations

import math

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.gram import Grams
from boom_ray.search.forms import Slope
from boom_ray.search.points import ALL, Point
from boom_ray.search.slerp_chain import slerp_chain, whole_gram


class SelfPositioning:
    """theta_0 + lambda V: V the slerp chain of the whole task vectors by shares a; penalty mu lambda.

    ``x`` is (M + 1,): a and lambda are its softplus. All begin at 1. The chain takes the members in their order, so at
    equal shares the last one has half of the arc: that is the published formula. The merge is the point of method
    ``linear`` with weights C / ΣC and scale lambda ΣC, C the chain's coefficients.
    """

    def __init__(self, grams: Grams, penalty: float = 0.05) -> None:
        if not (math.isfinite(penalty) and penalty >= 0):
            raise BoomError(f"the penalty on the length of the merged task vector is at least 0, got {penalty}.")
        self._gram = whole_gram(grams)
        self._penalty = penalty

    def start(self) -> np.ndarray:
        return np.full(len(self._gram) + 1, math.log(math.expm1(1.0)))

    def shares(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """a (M,) and lambda."""
        positive = np.logaddexp(0.0, x)
        return positive[:-1], float(positive[-1])

    def point(self, x: np.ndarray) -> Point:
        shares, length = self.shares(x)
        coefficients = slerp_chain(self._gram, shares).coefficients
        total = math.fsum(coefficients)
        return Point("linear", {ALL: tuple((coefficients / total).tolist())}, length * total)

    def pull(self, x: np.ndarray, slope: Slope) -> np.ndarray:
        shares, length = self.shares(x)
        chain = slerp_chain(self._gram, shares)
        along = np.array([math.fsum(column) for column in np.array([s[:-1] - s[-1] for s in slope.values()]).T])
        by_shares = length * (along @ chain.jacobian)
        by_length = float(along @ chain.coefficients) + self._penalty
        return np.append(by_shares, by_length) * np.exp(-np.logaddexp(0.0, -x))  # softplus' = sigmoid

    def inside(self, x: np.ndarray) -> np.ndarray:
        return x
