"""Intervals on score differences: the paired bootstrap, within tasks, over tasks, and over training seeds.

Two models are scored on the same queries, texts or pairs, so their scores move together; drawing those units again
for both at once (Efron & Tibshirani 1993, ch. 8; Berg-Kirkpatrick et al. 2012 for language tasks) measures the
difference alone. An interval is Student's t times the bootstrap standard error (Hesterberg 2015, The American
Statistician 69:371), not percentiles: two good models differ on few queries and by few values, where percentiles fall
on a coarse grid and cover the truth too rarely. For a mean the bootstrap standard error is known, s / sqrt(n), and
nothing is drawn.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boom_ray.config import BoomError
from boom_ray.evaluate.samples import Samples, read_samples
from boom_ray.evaluate.units import Bootstrap, Units, joined

__all__ = [
    "Bootstrap", "Contrast", "Interval", "Paired", "Samples", "difference", "mean_difference", "over_tasks",
    "read_samples", "task_difference",
]  # fmt: skip


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
class Contrast:
    """Mean score of the models ``first`` minus that of ``second``.

    With ``seeds`` the models of a side are training seeds of one method, and the interval holds for other seeds, too;
    a side of one model stands for that model. Without, it holds for these very models. ``paired``: the sides' models
    of one place have a seed in common, as a model and its average have, so what counts is how their differences vary.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    seeds: bool = False
    paired: bool = False

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each model; a model may stand on both sides."""
        weights = dict.fromkeys((*self.first, *self.second), 0.0)
        for sign, side in ((1.0, self.first), (-1.0, self.second)):
            for model in side:
                weights[model] += sign / len(side)
        return weights

    @property
    def deviations(self) -> list[list[dict[str, float]]]:
        """Weights by which each seed is told from the mean of all: of the pairs, else of each side of several."""
        if not self.seeds:
            return []
        if not self.paired:
            sides = (side for side in (self.first, self.second) if len(side) > 1)
            return [[Contrast((model,), side).weights for model in side] for side in sides]
        pairs = [Contrast((one,), (other,)).weights for one, other in zip(self.first, self.second, strict=True)]
        mean = self.weights
        found = [{model: pair.get(model, 0.0) - weight for model, weight in mean.items()} for pair in pairs]
        return [found] if len(found) > 1 else []


class Paired:
    """Several models on the same sets. Resamples are drawn once for all of them, so every contrast is paired."""

    def __init__(self, samples: Mapping[str, Mapping[str, Samples]], how: Bootstrap | None = None) -> None:
        """
        Args:
            samples: ``{model: {set: samples}}``; a set that a model lacks, or has other units of, has no intervals.

        Raises:
            BoomError: two models were scored on different texts of a set.
        """
        self.how = how or Bootstrap()
        self.models = tuple(samples)
        self._sets: dict[str, list[tuple[float, Units]]] = {}
        for name in samples[self.models[0]] if self.models else ():
            found = [samples[model].get(name) for model in self.models]
            known = [s for s in found if s is not None and s.known]
            if len({s.texts for s in known}) > 1:
                raise BoomError(
                    f"set '{name}': the scores were not taken on the same texts. Evaluate all models again."
                )
            if len(known) == len(found) and len({_shape(s) for s in known}) == 1:
                self._sets[name] = self._leaves(name, known)

    def _leaves(self, name: str, samples: Sequence[Samples]) -> list[tuple[float, Units]]:
        columns = zip(*(s.leaves() for s in samples), strict=True)
        seed = zlib.crc32(name.encode())
        return [
            (column[0][0], Units([leaf for _, leaf in column], self.how, (seed, number)))
            for number, column in enumerate(columns)
        ]

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets that have intervals."""
        return tuple(self._sets)

    def interval(self, contrast: Contrast, sets: Mapping[str, float]) -> Interval | None:
        """Weighted sum over sets of a contrast, for these sets and over other units like theirs.

        Args:
            sets: ``{set: weight}``; for a mean over n sets, 1 / n each.

        Returns:
            None where a set or a model has no known units.
        """
        weights = contrast.weights
        if not sets or not set(sets) <= set(self._sets) or not set(weights) <= set(self.models):
            return None
        leaves = [(share * weight, leaf) for name, share in sets.items() for weight, leaf in self._sets[name]]
        found = [(share, *leaf.moments(self._row(weights))) for share, leaf in leaves]
        centre = math.fsum(share * point for share, point, *_ in found)
        parts = [(share * share * variance, freedom) for share, _, variance, freedom in found]
        seeds = [self._seeds([self._row(seed) for seed in side], leaves) for side in contrast.deviations]
        return _interval(centre, parts, seeds, self.how.level)

    def _row(self, weights: Mapping[str, float]) -> np.ndarray:
        return np.array([weights.get(model, 0.0) for model in self.models])

    def _seeds(self, rows: Sequence[np.ndarray], leaves: Sequence[tuple[float, Units]]) -> _Seeds:
        """How the weighted scores of seeds vary about their mean, and how much of that is chance of the units."""
        moments = [[leaf.moments(row, plain=True) for row in rows] for _, leaf in leaves]
        shares = [share for share, _ in leaves]
        points = [math.fsum(w * m[i][0] for w, m in zip(shares, moments, strict=True)) for i in range(len(rows))]
        units = math.fsum(w * w * v for w, m in zip(shares, moments, strict=True) for _, v, _ in m)
        return _Seeds(math.fsum(p * p for p in points), units, len(rows))


@dataclass(frozen=True)
class _Seeds:
    """A side, or pairs, of ``count`` seeds: squares about their mean, and the same expected from units alone."""

    squares: float
    units: float
    count: int


def _seed_variance(sides: Sequence[_Seeds]) -> list[tuple[float, float]]:
    """(variance, freedom) that seeds add to that of the units: pooled, and nothing where units explain all of it."""
    freedom = sum(side.count - 1 for side in sides)
    if not freedom:
        return []
    seen = math.fsum(side.squares for side in sides) / freedom
    excess = seen - math.fsum(side.units for side in sides) / freedom
    if excess <= 1e-9 * seen:
        return []
    share = math.fsum(1 / side.count for side in sides)
    return [(excess * share, freedom * (excess / seen) ** 2)]  # the variance is known as badly as ``seen`` is


def difference(first: Samples, second: Samples, how: Bootstrap | None = None) -> Interval:
    """``first`` minus ``second`` on one set, over other units like these.

    Raises:
        BoomError: the two were not scored on the same texts, or nothing is known of the units.
    """
    return mean_difference({"": first}, {"": second}, how)


def mean_difference(
    first: Mapping[str, Samples], second: Mapping[str, Samples], how: Bootstrap | None = None
) -> Interval:
    """Mean over sets of ``first`` minus ``second``, for these sets and over other units like theirs.

    The sets are fixed and each is resampled on its own: the interval says how far the mean would move with other
    queries and texts, not with other tasks (:func:`task_difference` does).

    Raises:
        BoomError: a set is missing on one side, the texts differ, or nothing is known of a set's units.
    """
    if not first or set(first) != set(second):
        raise BoomError(f"nothing to compare: one has scores on {sorted(first)}, the other on {sorted(second)}.")
    paired = Paired({"first": first, "second": second}, how)
    found = paired.interval(Contrast(("first",), ("second",)), dict.fromkeys(first, 1 / len(first)))
    if found is None:
        raise BoomError(f"no units were kept for the scores on {sorted(set(first) - set(paired.sets))}.")
    return found


def task_difference(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of differences per task, over other tasks like these: the tasks are the units.

    Raises:
        BoomError: fewer than three tasks.
    """
    names = [str(number) for number in range(len(differences))]
    scores = {"first": dict(zip(names, differences, strict=True)), "second": dict.fromkeys(names, 0.0)}
    return over_tasks(scores, Contrast(("first",), ("second",)), names, level)


def over_tasks(
    scores: Mapping[str, Mapping[str, float]], contrast: Contrast, tasks: Sequence[str], level: float = 0.95
) -> Interval:
    """Mean over tasks of a contrast, over other tasks like these, from ``{model: {task: score}}``.

    The spread of the differences over tasks holds the chance of the units in it already.

    Raises:
        BoomError: fewer than three tasks.
    """
    if len(tasks) < 3:
        raise BoomError(f"an interval over tasks needs at least three tasks, got {len(tasks)}.")
    freedom = len(tasks) - 1

    def column(weights: Mapping[str, float]) -> np.ndarray:
        return sum(
            (w * np.array([scores[m][task] for task in tasks]) for m, w in weights.items()), np.zeros(len(tasks))
        )

    def seeds(side: Sequence[Mapping[str, float]]) -> _Seeds:
        columns = [column(weights) for weights in side]
        units = sum(float(c.var(ddof=1)) / len(tasks) for c in columns)
        return _Seeds(sum(float(c.mean()) ** 2 for c in columns), units, len(side))

    values = column(contrast.weights)
    parts = [(float(values.var(ddof=1)) / len(tasks), freedom)]
    return _interval(float(values.mean()), parts, [seeds(side) for side in contrast.deviations], level)


def _interval(centre: float, parts: Sequence[tuple[float, float]], seeds: Sequence[_Seeds], level: float) -> Interval:
    """From independent parts of the variance with their degrees of freedom, and what seeds add.

    All is known at least as well as how seeds vary: less would follow where the units of both sides move together, so
    that they explain more of a side's variance than there is in the difference.
    """
    from scipy.special import stdtrit

    total, freedom = joined([*parts, *_seed_variance(seeds)])
    freedom = max(freedom, sum(side.count - 1 for side in seeds))
    reach = float(stdtrit(freedom, 0.5 + level / 2)) * math.sqrt(total)
    return Interval(centre, centre - reach, centre + reach)


def _shape(samples: Samples) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Models can differ in it on the same texts: mteb leaves out documents whose summaries it cannot tell apart."""
    return tuple((leaf.kind, leaf.values.shape) for _, leaf in samples.leaves())
