"""What a gradient search moves, and how the slope at a merge pulls on it. Pure.

A *slope* is, by tensor, the inner products (M + 1,) of the loss' gradient with that tensor of every member and, last,
of the base. A merge lies in their span, so by the chain rule that is all its coefficients need to know of the loss.
The published form is in :mod:`boom_ray.search.self_positioning`; the direct one is here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.gram import Grams
from boom_ray.merge.methods import Setting
from boom_ray.merge.registry import get_method
from boom_ray.search.groups import group_names
from boom_ray.search.jacobians import derivative_of, tensor_jacobian
from boom_ray.search.points import Point

Slope = Mapping[str, np.ndarray]


class Form(Protocol):
    """Parameters ``x`` (float64 [n]) of a merge."""

    def start(self) -> np.ndarray:
        """Where the search begins."""
        ...

    def point(self, x: np.ndarray) -> Point:
        """The merge at ``x``."""
        ...

    def pull(self, x: np.ndarray, slope: Slope) -> np.ndarray:
        """Gradient [n] of the loss, and of the form's own penalty, by ``x``."""
        ...

    def inside(self, x: np.ndarray) -> np.ndarray:
        """``x``, or the nearest place within the form's bounds."""
        ...


class Direct:
    """Weights of a span method by tensor group, each the softmax of M parameters, and the scale of all.

    AdaMerging's idea (Yang et al. 2024, arXiv 2310.02575), with the contrastive loss in place of the entropy that
    embedders do not have.
    ``x`` is (groups * M + 1,): the logarithms of the weights, group after group, then the scale, kept in its bounds.
    """

    def __init__(
        self, grams: Grams, setting: Setting, groups: Mapping[str, str], scale: tuple[float, float] = (0.5, 1.5)
    ) -> None:
        """``setting``: method and whether it merges task vectors; its weights (above 0) and its scale are the start.

        Raises:
            BoomError: the method takes no weights; bounds that are empty or reversed; a start without a weight.
        """
        derivative_of(setting.method)
        if not 0 < scale[0] <= scale[1] < math.inf:
            raise BoomError(f"the scale's bounds are [low, high] with 0 < low <= high, got {list(scale)}.")
        if not (np.array(setting.weights) > 0).all():
            raise BoomError(f"a gradient search starts from weights above 0, got {list(setting.weights)}.")
        self._grams = grams
        self._setting = setting
        self._groups = groups
        self._names = group_names(groups)
        self._bounds = scale

    def start(self) -> np.ndarray:
        weights = np.log(np.array(self._setting.weights) / math.fsum(self._setting.weights))
        return self.inside(np.append(np.tile(weights, len(self._names)), self._setting.scale))

    def point(self, x: np.ndarray) -> Point:
        weights = {name: tuple(row.tolist()) for name, row in zip(self._names, self._weights(x), strict=True)}
        return Point(self._setting.method, weights, float(x[-1]))

    def pull(self, x: np.ndarray, slope: Slope) -> np.ndarray:
        weights = self._weights(x)
        by_weights, by_scale = np.zeros_like(weights), []
        settings = [self._at(row, float(x[-1])) for row in weights]
        for name, values in slope.items():
            place = self._names.index(self._groups[name])
            moved = values @ tensor_jacobian(settings[place], self._gram(name, settings[place]))
            by_weights[place] += moved[:-1]
            by_scale.append(moved[-1])
        mean = (weights * by_weights).sum(axis=1, keepdims=True)
        return np.append((weights * (by_weights - mean)).ravel(), math.fsum(by_scale))

    def inside(self, x: np.ndarray) -> np.ndarray:
        return np.append(x[:-1], np.clip(x[-1], *self._bounds))

    def _weights(self, x: np.ndarray) -> np.ndarray:
        """(groups, M): rows sum to 1."""
        logs = x[:-1].reshape(len(self._names), -1)
        powers = np.exp(logs - logs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def _at(self, weights: Sequence[float], scale: float) -> Setting:
        found = self._setting
        return Setting(found.method, tuple(float(w) for w in weights), {}, scale, found.task_vectors)

    def _gram(self, name: str, setting: Setting) -> np.ndarray | None:
        return self._grams.of(name, setting.in_deltas) if get_method(setting.method).gram else None
