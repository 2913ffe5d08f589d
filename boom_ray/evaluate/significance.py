"""Intervals on score differences: the paired bootstrap, on the units that mteb's metrics average or correlate.

Two models are scored on the same queries, texts or pairs, so their scores move together; resampling those units for
both at once (Efron & Tibshirani 1993, ch. 8; Berg-Kirkpatrick et al. 2012 for language tasks) measures the difference
alone. A resample is a vector of counts per unit, so every metric here is a function of counts, over many resamples
at once.

Intervals are Student's t times the bootstrap standard error (Hesterberg 2015, The American Statistician 69:371), not
percentiles: two good models differ on few queries and by few values, where percentiles fall on a coarse grid and cover
the truth too rarely (50 queries, right or wrong, 1,000 simulations: percentiles covered it in 74 of 100, these in 92).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from boom_ray.config import BoomError

_BLOCK = 1 << 21  # counts held at once: resamples x units


@dataclass(frozen=True)
class Samples:
    """What one model's score on one set was made from.

    ``kind`` and the arrays it needs, for N units:

    - ``mean``: ``values`` [N], the score of each query or text; the score is their mean.
    - ``pearson`` / ``spearman``: ``values`` [N] predicted and ``gold`` [N] true similarities.
    - ``v_measure``: ``gold`` [N] class numbers, ``values`` [E, N] the cluster of each text in each of E k-means runs,
      ``draws`` [E, N] how often the run drew it; the score is the mean over runs, which are not run again.

    ``texts`` names the data: two models can be compared when it is equal.
    """

    kind: str
    texts: str
    values: np.ndarray
    gold: np.ndarray = field(default_factory=lambda: np.zeros(0))
    draws: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def units(self) -> int:
        return self.values.shape[-1]

    def score(self) -> float:
        """The score on all units, as mteb reports it."""
        return float(self.resampled(np.ones((1, self.units)))[0])

    def resampled(self, counts: np.ndarray) -> np.ndarray:
        """Scores [R] when unit n occurs ``counts[r, n]`` times."""
        if self.kind == "mean":
            return counts @ self.values / counts.sum(axis=1)
        if self.kind == "pearson":
            return _pearson(counts, _same(self.values, counts), _same(self.gold, counts))
        if self.kind == "spearman":
            return _pearson(counts, _ranks(self.values, counts), _ranks(self.gold, counts))
        runs = zip(self.values.astype(np.int64), self.draws, strict=True)
        return np.mean([_v_measure(counts * drawn, self.gold.astype(np.int64), found) for found, drawn in runs], axis=0)

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}")
        with open(temporary, "wb") as stream:
            np.savez_compressed(
                stream, kind=self.kind, texts=self.texts, values=self.values, gold=self.gold, draws=self.draws
            )
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path) -> Samples:
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in ("values", "gold", "draws")}
            return cls(str(found["kind"]), str(found["texts"]), **arrays)


@dataclass(frozen=True)
class Interval:
    """A difference in score (0..1 units) and its interval."""

    difference: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """The interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Bootstrap:
    """How to resample. The same seed gives the same interval."""

    resamples: int = 2000
    seed: int = 17
    level: float = 0.95


def difference(first: Samples, second: Samples, how: Bootstrap | None = None) -> Interval:
    """``first`` minus ``second`` on one set, over other units like these.

    Raises:
        BoomError: the two were not scored on the same texts.
    """
    return mean_difference({"": first}, {"": second}, how)


def mean_difference(
    first: Mapping[str, Samples], second: Mapping[str, Samples], how: Bootstrap | None = None
) -> Interval:
    """Mean over sets of ``first`` minus ``second``, for these sets and over other units like theirs.

    The sets are fixed and each is resampled on its own: the interval says how far the mean would move with other
    queries and texts, not with other tasks (:func:`task_difference` does).

    Raises:
        BoomError: a set is missing on one side, or the texts differ.
    """
    how = how or Bootstrap()
    if not first or set(first) != set(second):
        raise BoomError(f"nothing to compare: one has scores on {sorted(first)}, the other on {sorted(second)}.")
    points, variances, freedoms = [], [], []
    for number, name in enumerate(sorted(first)):
        a, b = first[name], second[name]
        if (a.texts, a.units, a.kind) != (b.texts, b.units, b.kind):
            raise BoomError(f"set '{name}': the two scores were not taken on the same texts. Evaluate both again.")
        rng = np.random.default_rng([how.seed, number])
        drawn = np.concatenate([a.resampled(c) - b.resampled(c) for c in _counts(a.units, how.resamples, rng)])
        freedoms.append(max(1, a.units - 1))
        variances.append(
            drawn.var(ddof=1) * a.units / freedoms[-1]
        )  # a resample of n varies (n-1)/n as much as n fresh
        points.append(a.score() - b.score())
    total = math.fsum(variances)
    parts = math.fsum(v * v / f for v, f in zip(variances, freedoms, strict=True))
    freedom = total * total / parts if parts else 1.0  # Welch and Satterthwaite
    return _interval(math.fsum(points) / len(points), math.sqrt(total) / len(points), freedom, how.level)


def task_difference(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of differences per task, over other tasks like these: the tasks are the units.

    The bootstrap standard error of a plain mean is known, s / sqrt(n), so nothing needs to be drawn.

    Raises:
        BoomError: fewer than three tasks.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 3:
        raise BoomError(f"an interval over tasks needs at least three tasks, got {len(values)}.")
    return _interval(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1, level)


def _interval(centre: float, error: float, freedom: float, level: float) -> Interval:
    from scipy.stats import t

    reach = float(t.ppf(0.5 + level / 2, freedom)) * error
    return Interval(centre, centre - reach, centre + reach)


def _counts(units: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Multinomial counts, [R, units] in blocks that bound the memory."""
    block = max(1, _BLOCK // units)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picks = rng.integers(0, units, size=(rows, units)) + np.arange(rows)[:, None] * units
        yield np.bincount(picks.ravel(), minlength=rows * units).reshape(rows, units).astype(float)


def _same(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values, counts.shape)


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average ranks [R, N] of values [N] when value n occurs ``counts[r, n]`` times."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    tied = np.add.reduceat(counts[:, order], starts, axis=1)  # [R, groups]
    ranks = np.cumsum(tied, axis=1) - (tied - 1) / 2
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(ordered)]))
    out = np.empty_like(counts)
    out[:, order] = ranks[:, group]
    return out


def _pearson(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation [R] of x and y [R, N] under counts; 0 where one of them is constant."""
    total = counts.sum(axis=1, keepdims=True)
    x = x - (counts * x).sum(axis=1, keepdims=True) / total
    y = y - (counts * y).sum(axis=1, keepdims=True) / total
    norm = np.sqrt((counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1))
    return np.divide((counts * x * y).sum(axis=1), norm, out=np.zeros(len(norm)), where=norm > 0)


def _v_measure(counts: np.ndarray, classes: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """V-measure [R] (Rosenberg & Hirschberg 2007): 2 I(C;K) / (H(C) + H(K)) of classes and clusters under counts."""
    width = int(clusters.max()) + 1
    cells = classes * width + clusters
    kinds = np.unique(cells)
    joint = _sums(counts, cells)
    h_joint = _entropy(joint)
    h_class, h_cluster = _entropy(_sums(joint, kinds // width)), _entropy(_sums(joint, kinds % width))
    both = h_class + h_cluster
    return np.divide(2 * (both - h_joint), both, out=np.ones(len(both)), where=both > 0)


def _sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Row-wise sums [R, G] of values [R, N] over the groups [N], in ascending order of the group."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return np.add.reduceat(values[:, order], starts, axis=1)


def _entropy(masses: np.ndarray) -> np.ndarray:
    p = masses / masses.sum(axis=1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
