"""What a score was made from: the units (queries, texts, pairs) behind it, kept beside mteb's results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.evaluate import resampling

_NOTHING = np.zeros(0)
_ARRAYS = ("values", "gold", "draws")
_ONE_RUN: dict[str, Callable[..., np.ndarray]] = {
    "pearson": resampling.pearson,
    "spearman": resampling.spearman,
    "ap": resampling.average_precision,
    "best_accuracy": resampling.best_accuracy,
    "best_f1": resampling.best_f1,
}
_CLUSTERS = {"v_measure": resampling.v_measure, "ami": resampling.adjusted_information}


@dataclass(frozen=True)
class Samples:
    """What one model's score on one set was made from.

    ``kind`` and the arrays it needs, for N units and E runs (draws of training texts, of k-means):

    - ``mean``: ``values`` [N], the score of each unit, or [E, N], in each run; the score is their mean.
    - ``pearson``, ``spearman``: ``values`` [N] predicted and ``gold`` [N] true similarities.
    - ``ap``, ``best_accuracy``, ``best_f1``: ``values`` [N] similarities, higher is more alike, ``gold`` [N] 0 or 1.
    - ``labels:METRIC`` (accuracy, ap, f1, precision, recall, and the last three with ``_weighted``): ``values`` [E, N]
      predicted and ``gold`` [N] true class numbers; the score is the mean over runs.
    - ``kendalltau``: ``values`` [E, N] predicted and ``gold`` [N] true values; tau-b, mean over runs.
    - ``multilabel:f1``: ``values`` [E, N, L] and ``gold`` [N, L], 0 or 1; macro average, mean over runs.
    - ``v_measure``, ``ami``: ``gold`` [N] or [E, N] class numbers, ``values`` [E, N] the cluster of each text in each
      k-means run; the score is the mean over runs, which are not run again.
    - ``parts``: the score is the mean of the scores of ``parts`` (a task's splits and languages).
    - ``none``: nothing is known of the units.

    ``draws`` [E, N] says how often a run used each unit; empty: once. ``texts`` names the data: two models can be
    compared when it is equal.
    """

    kind: str
    texts: str
    values: np.ndarray = field(default_factory=lambda: _NOTHING)
    gold: np.ndarray = field(default_factory=lambda: _NOTHING)
    draws: np.ndarray = field(default_factory=lambda: _NOTHING)
    parts: tuple[Samples, ...] = ()

    @property
    def units(self) -> int:
        if self.kind == "parts":
            return sum(part.units for part in self.parts)
        return self.values.shape[1] if self.kind.startswith("multilabel") else self.values.shape[-1]

    @property
    def known(self) -> bool:
        """There are units to draw again."""
        return all(part.kind != "none" for _, part in self.leaves())

    def leaves(self) -> Iterator[tuple[float, Samples]]:
        """What is resampled on its own, with its weight in the score; the weights add up to one."""
        if self.kind != "parts":
            yield 1.0, self
        for part in self.parts:
            yield from ((weight / len(self.parts), leaf) for weight, leaf in part.leaves())

    def score(self) -> float:
        """The score on all units, as mteb reports it."""
        return sum(weight * float(leaf.resampled(np.ones((1, leaf.units)))[0]) for weight, leaf in self.leaves())

    def resampled(self, counts: np.ndarray) -> np.ndarray:
        """Scores [R] when unit n occurs ``counts[r, n]`` times, [R, N]; not for ``parts``, whose units differ."""
        if self.kind == "mean":
            return counts @ np.atleast_2d(self.values).mean(axis=0) / counts.sum(axis=1)
        if self.kind in _ONE_RUN:
            return _ONE_RUN[self.kind](counts, self.values, self.gold)
        return np.mean([self._run(run, counts) for run in range(len(self.values))], axis=0)

    def clusterings(self) -> tuple[np.ndarray, int]:
        """Scores [E] of k-means runs about the mean of their level, and the count of levels; of other kinds nothing."""
        if self.kind not in _CLUSTERS:
            return np.zeros(0), 0
        once = np.ones((1, self.units))
        scores = np.array([self._run(run, once)[0] for run in range(len(self.values))])
        gold = np.atleast_2d(self.gold)
        level = np.unique(gold, axis=0, return_inverse=True)[1].ravel() if len(gold) > 1 else np.zeros(len(scores), int)
        mean = np.bincount(level, scores) / np.bincount(level)
        return scores - mean[level], len(mean)

    def _run(self, run: int, counts: np.ndarray) -> np.ndarray:
        if self.draws.size:
            counts = counts * self.draws[run]
        gold = self.gold[run] if self.kind in _CLUSTERS and self.gold.ndim == 2 else self.gold
        kind, _, metric = self.kind.partition(":")
        if kind == "multilabel":
            return resampling.multilabel_f1(counts, self.values[run], gold)
        if kind == "kendalltau":
            return resampling.kendall(counts, self.values[run], gold)
        score = resampling.label_metric(metric) if kind == "labels" else _CLUSTERS[kind]
        return score(counts, self.values[run].astype(np.int64), gold.astype(np.int64))

    def save(self, file: Path) -> None:
        """Write one ``.npz``, complete or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}")
        with open(temporary, "wb") as stream:
            np.savez_compressed(stream, **self._packed(""))
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path) -> Samples:
        """Read what :meth:`save` wrote. A damaged file raises OSError, ValueError, KeyError or BadZipFile."""
        with np.load(file, allow_pickle=False) as found:
            return cls._unpacked(found, "")

    def _packed(self, prefix: str) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        own = {"kind": self.kind, "texts": self.texts, "parts": len(self.parts), **arrays}
        packed = {prefix + name: value for name, value in own.items()}
        for number, part in enumerate(self.parts):
            packed |= part._packed(f"{prefix}{number}.")
        return packed

    @classmethod
    def _unpacked(cls, found: Mapping[str, Any], prefix: str) -> Samples:
        arrays = {name: found[prefix + name] for name in _ARRAYS}
        count = int(found[f"{prefix}parts"]) if f"{prefix}parts" in found else 0
        parts = tuple(cls._unpacked(found, f"{prefix}{number}.") for number in range(count))
        return cls(str(found[f"{prefix}kind"]), str(found[f"{prefix}texts"]), **arrays, parts=parts)


def read_samples(folder: Path) -> dict[str, Samples]:
    """``{set: samples}`` of all files in a folder and below it; without mteb. Damaged ones are left out."""
    from zipfile import BadZipFile

    found = {}
    for file in sorted(folder.rglob("*.npz")):
        try:
            found[file.stem] = Samples.load(file)
        except (OSError, ValueError, KeyError, BadZipFile):
            continue
    return found
