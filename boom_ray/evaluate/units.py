"""Several models on one set of units (queries, texts, pairs): how their scores move together with other units.

For a mean the bootstrap standard error is known, s / sqrt(n), and nothing is drawn; other scores are computed again on
multinomial counts of the units, the same ones for every model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boom_ray.evaluate.samples import Samples

_BLOCK = 1 << 21  # counts held at once: resamples x units
_WORK = 1 << 22  # values looked at for one set and model, unless that leaves too few resamples
_TIE = 1e-12  # values that differ by less are equal
_FEWEST = 200  # resamples: a standard error from 200 is known to 5 %


@dataclass(frozen=True)
class Bootstrap:
    """How to resample. The same seed gives the same interval; sets of very many units and runs get fewer resamples."""

    resamples: int = 500
    seed: int = 17
    level: float = 0.95


class Units:
    """Several models on one set of units: their values on each, or their scores on resamples of them."""

    def __init__(self, samples: Sequence[Samples], how: Bootstrap, seed: tuple[int, int]) -> None:
        self._units = samples[0].units
        self._exact = samples[0].kind == "mean"
        self._scores = np.array([s.score() for s in samples])
        if self._exact:  # values [models, runs, units], and their means over the runs
            self._draws = np.stack([np.atleast_2d(s.values).astype(np.float32) for s in samples])
            self._columns = np.stack([np.atleast_2d(s.values).mean(axis=0) for s in samples])
            return
        rng = np.random.default_rng([how.seed, *seed])
        resamples = min(how.resamples, max(_FEWEST, _WORK // max(1, samples[0].values.size)))
        runs = [s.clusterings() for s in samples]
        self._runs, self._levels = np.stack([centred for centred, _ in runs]), runs[0][1]  # [models, runs]
        blocks = resample_counts(self._units, resamples, rng)
        self._columns = np.concatenate([np.stack([s.resampled(c) for s in samples]) for c in blocks], axis=1)

    def moments(self, weights: np.ndarray, plain: bool = False) -> tuple[float, float, float]:
        """(value, its variance over other units, degrees of freedom of the variance) of a weighted sum of scores."""
        point, column, n = float(weights @ self._scores), weights @ self._columns, self._units
        freedom = max(1, n - 1)
        if not self._exact:  # a resample of n varies (n-1)/n as much as n fresh units
            return point, *joined([(float(column.var(ddof=1)) * n / freedom, freedom), *self._clustered(weights)])
        if plain or not weights.any():  # a model against itself
            own = float(column.var())
        else:
            own = _variance(column, float(np.ptp(self._columns[weights != 0])))
        return point, *joined([(own / freedom, freedom), *self._redrawn(weights)])

    def _redrawn(self, weights: np.ndarray) -> list[tuple[float, float]]:
        """What other draws of training texts add, beyond what the chance of the units explains."""
        draws = np.tensordot(weights, self._draws, axes=1)  # [runs, units]
        if len(draws) < 2:
            return []
        freedom, middle = len(draws) - 1, draws.mean(axis=1)
        seen = float(middle.var(ddof=1))
        excess = seen - float((draws - draws.mean(axis=0)).var(axis=1).sum()) / freedom / draws.shape[1]
        return [(excess / len(draws), freedom * (excess / seen) ** 2)] if excess > 1e-9 * seen else []

    def _clustered(self, weights: np.ndarray) -> list[tuple[float, float]]:
        """What the chance of k-means adds: it starts anew in each run, and the score is the mean over runs."""
        runs, freedom = weights @ self._runs, self._runs.shape[1] - self._levels
        return [(float(runs @ runs) / freedom / len(runs), freedom)] if freedom > 0 else []


def _variance(differences: np.ndarray, span: float) -> float:
    """Mean square about the mean, as if one more unit differed, by as much as those that do, one way or the other.

    Where most units are ties the share that is not is known badly, and one more makes up for it (for right or wrong:
    Agresti & Min 2005, Statistics in Medicine 24:729, half a unit more each way). Where no unit differs there might be
    two that do, by the whole ``span`` of the values: three in n is the most that seeing none of n allows for.
    Where every unit differs nothing changes.
    """
    square, n = float(differences @ differences), len(differences)
    differ = int(np.count_nonzero(np.abs(differences) > _TIE))
    more = square / differ if differ else 2 * span * span
    return max(0.0, (square + more) / (n + 1) - float(differences.mean()) ** 2)


def joined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of independent parts of a variance, and its degrees of freedom (Welch and Satterthwaite)."""
    total = math.fsum(variance for variance, _ in parts)
    squares = math.fsum(variance * variance / freedom for variance, freedom in parts)
    return total, total * total / squares if squares else 1.0


def resample_counts(units: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Multinomial counts, [R, units] in blocks that bound the memory."""
    block = max(1, _BLOCK // units)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picks = rng.integers(0, units, size=(rows, units)) + np.arange(rows)[:, None] * units
        yield np.bincount(picks.ravel(), minlength=rows * units).reshape(rows, units).astype(float)
