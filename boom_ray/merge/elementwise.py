"""Methods outside the members' span: every element is decided by itself, some by its rank in the whole tensor.

A method is a class of a few numpy functions on blocks of task vectors; it never sees a file, a window or a thread.
Ranks are exact and need no sorting and no memory of the tensor's size: non-negative float32 scores have the order of
their bit patterns, so two passes of histograms, over the upper and then the lower 16 bits, find the k-th largest; among
equal scores the ones that come first in the tensor are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from boom_ray.merge.registry import PerMember, method


class Elementwise(Protocol):
    """One tensor's merge; deltas are (M, n) float32 task vectors of a block, masks (S, n) bool say what is kept."""

    def scores(self, deltas: np.ndarray) -> np.ndarray:
        """(S, n) non-negative float32: the quantities that are ranked over the whole tensor; S may be 0."""

    def kept(self, size: int, nonzero: np.ndarray) -> list[int]:
        """How many elements each ranking keeps, of ``size`` and of ``nonzero`` (S,) with a score above zero."""

    def measure(self, deltas: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """(T,) float64 sums over the block that :meth:`merged` needs of the whole tensor; T may be 0."""

    def merged(self, deltas: np.ndarray, masks: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """(n,) float64: the merged task vector of the block."""


@method("ties", space="elementwise", gram=False)
class Ties:
    """TIES (arXiv 2306.01708): keep each member's largest changes, elect a sign per element, average those who agree.

    Args:
        density: share of elements kept, per member or one for all; normalize: divide by the weights that took part;
        lambda_: factor on the result.
    """

    def __init__(
        self, weights: np.ndarray, *, density: PerMember = (1.0,), normalize: bool = True, lambda_: float = 1.0
    ) -> None:
        self.weights = weights
        self.density = np.broadcast_to(np.asarray(density, np.float64), weights.shape)
        self.normalize = normalize
        self.factor = lambda_

    def scores(self, deltas: np.ndarray) -> np.ndarray:
        return np.abs(deltas)

    def kept(self, size: int, nonzero: np.ndarray) -> list[int]:
        return [size if d >= 1 else 0 if d <= 0 else max(1, int(d * size)) for d in self.density]

    def measure(self, deltas: np.ndarray, masks: np.ndarray) -> np.ndarray:
        return np.empty(0)

    def merged(self, deltas: np.ndarray, masks: np.ndarray, totals: np.ndarray) -> np.ndarray:
        terms = np.where(masks, deltas, np.float32(0)) * self.weights[:, None]
        agree = _agree(terms)
        result = np.where(agree, terms, 0.0).sum(axis=0)
        if self.normalize:
            shares = np.where(agree, self.weights[:, None], 0.0).sum(axis=0)
            result /= np.where(shares == 0, 1.0, shares)
        return self.factor * result


@method("sce", space="elementwise", gram=False, weighted=False)
class Sce:
    """SCE (arXiv 2408.07990): select elements of high variance, weigh members by their energy there, erase minorities.

    Args:
        weights: not used; select_topk: share of the elements with any variance that is kept.
    """

    def __init__(self, weights: np.ndarray, *, select_topk: float = 1.0) -> None:
        self.share = select_topk

    def scores(self, deltas: np.ndarray) -> np.ndarray:
        if self.share >= 1:
            return np.empty((0, deltas.shape[1]), np.float32)
        return deltas.astype(np.float64).var(axis=0, keepdims=True).astype(np.float32)

    def kept(self, size: int, nonzero: np.ndarray) -> list[int]:
        return [max(0, int(count * self.share)) for count in nonzero]

    def measure(self, deltas: np.ndarray, masks: np.ndarray) -> np.ndarray:
        return (_selected(deltas, masks).astype(np.float64) ** 2).sum(axis=1)

    def merged(self, deltas: np.ndarray, masks: np.ndarray, totals: np.ndarray) -> np.ndarray:
        total = math.fsum(totals)
        weights = totals / total if total > 0 else np.full(len(totals), 1 / len(totals))
        chosen = _selected(deltas, masks).astype(np.float64)
        agree = _agree(chosen)
        shares = np.where(agree, weights[:, None], 0.0).sum(axis=0)
        result = np.where(agree, chosen * weights[:, None], 0.0).sum(axis=0)
        return result / np.where(shares == 0, 1.0, shares)


def _selected(deltas: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return deltas if not len(masks) else np.where(masks[0], deltas, np.float32(0))


def _agree(terms: np.ndarray) -> np.ndarray:
    """(M, n) bool: terms with the sign of their sum; a sum of zero counts as positive."""
    positive = terms.sum(axis=0) >= 0
    return np.where(positive, terms > 0, terms < 0)


@dataclass(frozen=True)
class Cut:
    """The k-th largest of a ranking: scores above ``bits`` are kept, and the first ``ties`` of those equal to it."""

    bits: int
    ties: int
    equal: int

    def mask(self, scores: np.ndarray, seen: int) -> np.ndarray:
        """Which of a block's scores (n,) uint32 are kept, where ``seen`` equal ones came before it."""
        above = scores > np.uint32(self.bits) if self.bits >= 0 else np.ones(len(scores), bool)
        if self.ties == 0 or self.bits < 0:
            return above
        level = scores == np.uint32(self.bits)
        if self.ties >= self.equal:
            return above | level
        return above | (level & (np.cumsum(level) + seen <= self.ties))


NOTHING = Cut(bits=(1 << 32) - 1, ties=0, equal=0)
EVERYTHING = Cut(bits=-1, ties=0, equal=0)


def find_bin(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """The bin that holds the ``wanted``-th largest, and how many of it are wanted.

    Args: counts: (65536,) of a histogram by increasing score; wanted: from 1 to counts.sum().
    """
    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, wanted))
    before = int(from_above[place - 1]) if place else 0
    return len(counts) - 1 - place, wanted - before
