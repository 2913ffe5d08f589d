"""The space that is searched: what a point may be, as dimensions that a sampler understands. Pure.

A sampler proposes a raw number per member (and group) in [0, 1]; the shares are what is left of them after division by
their sum. Where members may drop out the range begins below zero, and what lies there is a share of exactly 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boom_ray.config import BoomError
from boom_ray.merge.registry import get_method
from boom_ray.search.points import ALL, Point, normalised

_DROP = -0.25  # a fifth of the range drops a member
_FINEST = 64  # levels of a grid that are looked at


@dataclass(frozen=True)
class Dimension:
    """One number in [low, high], or one of ``choices``."""

    name: str
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """Bounds of everything that a point is made of.

    Attributes:
        members: how many; methods: to choose from; groups: of tensors, each with weights of its own.
        scale, base_share: [low, high]; no base share where None. weights: bounds of each share, on the simplex.
        drop: shares of exactly 0 are likely.

    Raises:
        BoomError: no point lies in it; says which bounds are to blame.
    """

    members: int
    methods: tuple[str, ...] = ("linear",)
    groups: tuple[str, ...] = (ALL,)
    scale: tuple[float, float] = (1.0, 1.0)
    weights: tuple[float, float] = (0.0, 1.0)
    base_share: tuple[float, float] | None = None
    drop: bool = False

    def __post_init__(self) -> None:
        if self.members < 1 or not self.groups or not self.methods:
            raise BoomError("the search space is empty: it needs a member, a tensor group and a merge method.")
        for name in self.methods:
            self._check_method(name)
        for what, bounds in (("scale", self.scale), ("weights", self.weights), ("base_share", self.base_share)):
            if bounds is not None and not (all(map(math.isfinite, bounds)) and bounds[0] <= bounds[1]):
                raise BoomError(f"search.{what}: no number lies in {list(bounds)}. Give [low, high], low first.")
        if self.scale[0] <= 0:
            raise BoomError(f"search.scale: a scale lies above 0, got {list(self.scale)}.")
        if self.base_share is not None and not 0 <= self.base_share[0] <= self.base_share[1] < 1:
            raise BoomError(f"search.base_share: shares of the base lie in [0, 1), got {list(self.base_share)}.")
        self._check_shares()

    def _check_method(self, name: str) -> None:
        method = get_method(name)
        if method.space == "elementwise" or name == "passthrough":
            raise BoomError(
                f"search.methods: {name} is not in the span of the members, or takes no weights that could be searched."
            )
        low, high = method.members
        if not low <= self.members <= high:
            wanted = f"{low}" if low == high else f"at least {low}"
            raise BoomError(f"search.methods: {name} takes {wanted} members, and {self.members} are searched.")

    def _check_shares(self) -> None:
        low, high = self.weights
        if low < 0 or high > 1:
            raise BoomError(f"search.weights: {list(self.weights)} lies outside the simplex: shares are 0 to 1.")
        if low * self.members > 1 + 1e-9 or high * self.members < 1 - 1e-9:
            raise BoomError(
                f"search.weights: {self.members} shares in {list(self.weights)} cannot sum to 1: this space lies "
                f"outside the simplex. The lower bound is at most {1 / self.members:.3g}, the upper one at least that."
            )

    def dimensions(self) -> list[Dimension]:
        """What a sampler proposes; what is fixed is left out."""
        low = _DROP if self.drop else 0.0
        found = [
            Dimension(self._weight(group, i), low, 1.0)
            for group in self.groups
            for i in range(self.members)
            if self.members > 1
        ]
        if self.scale[0] < self.scale[1]:
            found.append(Dimension("scale", *self.scale))
        if self.base_share is not None and self.base_share[0] < self.base_share[1]:
            found.append(Dimension("base_share", *self.base_share))
        if len(self.methods) > 1:
            found.append(Dimension("method", choices=self.methods))
        return found

    def point(self, parameters: Mapping[str, Any]) -> Point:
        """The point that a sampler's numbers stand for. Where all raw weights are 0, the largest one has it all."""
        weights = {group: self._shares(group, parameters) for group in self.groups}
        scale = parameters.get("scale", self.scale[0])
        base = parameters.get("base_share", self.base_share[0] if self.base_share else 0.0)
        return Point(str(parameters.get("method", self.methods[0])), weights, float(scale), float(base))

    def parameters(self, point: Point) -> dict[str, Any]:
        """A sampler's numbers for a point, moved into the bounds where it lies outside."""
        found: dict[str, Any] = {}
        for dimension in self.dimensions():
            if dimension.choices:
                found[dimension.name] = point.method if point.method in dimension.choices else dimension.choices[0]
            elif dimension.name == "scale":
                found["scale"] = min(max(point.scale, dimension.low), dimension.high)
            elif dimension.name == "base_share":
                found["base_share"] = min(max(point.base, dimension.low), dimension.high)
        for group in self.groups if self.members > 1 else ():
            shares = bounded(point.of(group), *self.weights)
            most = max(shares)
            found |= {self._weight(group, i): share / most for i, share in enumerate(shares)}
        return found

    def _shares(self, group: str, parameters: Mapping[str, Any]) -> tuple[float, ...]:
        if self.members == 1:
            return (1.0,)
        raw = [float(parameters[self._weight(group, i)]) for i in range(self.members)]
        positive = [max(0.0, value) for value in raw]
        if not any(positive):
            positive[raw.index(max(raw))] = 1.0
        return bounded(normalised(positive), *self.weights)

    def _weight(self, group: str, member: int) -> str:
        return f"weight_{member}" if group == ALL else f"{group}/weight_{member}"

    def grid(self, most: int) -> list[Point]:
        """The finest grid of at most ``most`` points: shares on a lattice of the simplex, even steps in the bounds.

        Raises:
            BoomError: even the coarsest has more.
        """
        moving = any(d.name in ("scale", "base_share") for d in self.dimensions())
        even = [(r, s) for r in range(1, _FINEST) for s in range(1, min(r + 1, 9) + 1) if s == 9 or r <= 2 * s]
        levels = even if moving else [(r, 1) for r in range(1, _FINEST)]  # neither much finer than the other
        sizes = {level: self._grid_size(*level) for level in levels}
        fitting = {level: size for level, size in sizes.items() if size <= most}
        if not fitting:
            raise BoomError(
                f"a grid over this space has at least {min(sizes.values())} points, and search.trials leaves it "
                f"{most}. Raise search.trials, or search fewer groups or methods."
            )
        shares, steps = max(fitting, key=lambda level: (fitting[level], level))
        return list(self._grid_points(shares, steps))

    def _grid_size(self, shares: int, steps: int) -> int:
        lattice = math.comb(shares + self.members - 1, self.members - 1) ** len(self.groups)
        moving = [b for b in (self.scale, self.base_share) if b is not None and b[0] < b[1]]
        return lattice * steps ** len(moving) * len(self.methods)

    def _grid_points(self, shares: int, steps: int) -> Iterator[Point]:
        lattice = [tuple(k / shares for k in split) for split in _splits(shares, self.members)]
        lattice = [bounded(weights, *self.weights) for weights in lattice]
        scales, bases = _steps(self.scale, steps, 1.0), _steps(self.base_share or (0.0, 0.0), steps, 0.0)
        by_group = itertools.product(lattice, repeat=len(self.groups))
        for weights, scale, base, method in itertools.product(by_group, scales, bases, self.methods):
            yield Point(method, dict(zip(self.groups, weights, strict=True)), scale, base)


def bounded(shares: Sequence[float], low: float, high: float) -> tuple[float, ...]:
    """The nearest shares with sum 1 in [low, high]: all are moved by one number, then cut."""
    if all(low <= share <= high for share in shares):
        return tuple(shares)
    below, above = low - max(shares), high - min(shares)
    for _ in range(200):
        middle = (below + above) / 2
        total = math.fsum(min(max(share + middle, low), high) for share in shares)
        below, above = (middle, above) if total < 1 else (below, middle)
    return tuple(min(max(share + above, low), high) for share in shares)


def _splits(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to share ``total`` among ``parts``, in order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        yield from ((first, *rest) for rest in _splits(total - first, parts - 1))


def _steps(bounds: tuple[float, float], count: int, neutral: float) -> list[float]:
    """Even steps from bound to bound; a single one is the neutral value, or the bound next to it."""
    low, high = bounds
    if low == high:
        return [low]
    if count == 1:
        return [min(max(neutral, low), high)]
    return [low + (high - low) * k / (count - 1) for k in range(count)]
