"""A point of the search: everything that a merge of given members is made from. Pure; no torch, no numpy.

The same point drives the merge in memory (:mod:`boom_ray.search.resident`) and the one on disk, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boom_ray.config import BoomError

ALL = "all"  # the only group of a point whose tensors all take the same weights
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Point:
    """Method, weights by tensor group, scale and the base's share.

    Attributes:
        method: a merge method in the span of the members.
        weights: by tensor group (see :mod:`boom_ray.search.groups`), ``{"all": ...}`` where tensors are not grouped;
            one weight per member, at least 0 and 1 in sum.
        scale: factor on what the merge adds to the base; above 0.
        base: the base model's share in [0, 1): the model is (1 - base) merge + base theta_0.
    """

    method: str
    weights: Mapping[str, tuple[float, ...]]
    scale: float = 1.0
    base: float = 0.0

    def __post_init__(self) -> None:
        if not self.weights:
            raise BoomError("a merge needs weights: this point has none.")
        counts = {len(weights) for weights in self.weights.values()}
        if len(counts) != 1 or 0 in counts:
            raise BoomError(f"every tensor group takes one weight per member; the groups here have {sorted(counts)}.")
        for group, weights in self.weights.items():
            _check_simplex(group, weights)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise BoomError(f"scale must be a number above 0, got {self.scale}.")
        if not 0 <= self.base < 1:
            raise BoomError(f"the base model's share lies in [0, 1), got {self.base}.")

    @property
    def members(self) -> int:
        return len(next(iter(self.weights.values())))

    @property
    def grouped(self) -> bool:
        return set(self.weights) != {ALL}

    def of(self, group: str) -> tuple[float, ...]:
        """The weights of a tensor group.

        Raises:
            BoomError: the point has none for it.
        """
        found = self.weights.get(group, self.weights.get(ALL))
        if found is None:
            raise BoomError(f"the point has no weights for tensor group '{group}'; it has {', '.join(self.weights)}.")
        return found

    def mean_weights(self) -> tuple[float, ...]:
        """The weights, averaged over groups: what is shown where one number per member is wanted."""
        groups = list(self.weights.values())
        return tuple(math.fsum(group[i] for group in groups) / len(groups) for i in range(self.members))

    def to_json(self) -> dict[str, Any]:
        weights = {group: list(values) for group, values in self.weights.items()}
        return {"method": self.method, "weights": weights, "scale": self.scale, "base": self.base}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Point:
        """Read what :meth:`to_json` wrote.

        Raises:
            BoomError: a key is missing, or what it says is no point.
        """
        try:
            weights = {str(group): tuple(float(w) for w in values) for group, values in raw["weights"].items()}
            found = (str(raw["method"]), weights, float(raw["scale"]), float(raw.get("base", 0.0)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BoomError(f"no point of a search: {error!r} in {raw!r}.") from None
        return cls(*found)


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights that sum to 1.

    Raises:
        BoomError: one is negative or no number, or they sum to zero.
    """
    if not weights or any(not math.isfinite(w) or w < 0 for w in weights):
        raise BoomError(f"merge weights must be finite numbers of at least 0, got {list(weights)}.")
    total = math.fsum(weights)
    if total <= 0:
        raise BoomError(f"the weights {list(weights)} sum to zero: no member would be merged. Raise one of them.")
    return tuple(float(w) / total for w in weights)


def even_point(
    method: str, weights: Sequence[float], scale: float = 1.0, groups: Sequence[str] = (ALL,), base: float = 0.0
) -> Point:
    """A point with the same weights, normalised here, in every group."""
    shares = normalised(weights)
    return Point(method, dict.fromkeys(groups, shares), scale, base)


def _check_simplex(group: str, weights: Sequence[float]) -> None:
    if any(not math.isfinite(w) or w < 0 for w in weights):
        raise BoomError(f"merge weights must be finite numbers of at least 0; group '{group}' has {list(weights)}.")
    total = math.fsum(weights)
    if total == 0:
        raise BoomError(f"the weights of group '{group}' sum to zero: no member would be merged. Raise one of them.")
    if abs(total - 1) > _ROUNDING:
        raise BoomError(f"the weights of group '{group}' sum to {total:g}, not to 1: they lie outside the simplex.")
