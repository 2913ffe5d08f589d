"""Re-embed or not: intervals on what two versions of a model do to an index, and the rule that decides.

The question is that of an owner of an index of old vectors who takes up the new model: may the index stay?

- Where relevance is known, it may stay when new queries in the old index lose at most ``LOSS`` of nDCG@10 against a new
  index, in the mean over the sets, and the whole 95 % interval says so. A new version of a model is worth 0.3 to 0.8
  points in this field, so a loss of more than half a point is as much as the update brings.
- Where nothing is known to be relevant, it may stay when at least ``OVERLAP`` of the ten first results are those of a
  new index, and the whole interval says so: approximate indexes are commonly tuned to a recall of 0.95, so this is no
  more than the loss that is accepted there.
- Vectors of another dimension cannot be searched together; vectors that are the same need not be made again.

What is not shown does not count: too few queries mean "re-embed", and the reason says that more would settle it. Fewer
than ``FEWEST`` never show that an index may stay: the harm may lie with queries that are not among them. A set that is
shown by itself to lose more than the limit, at a level that allows for the number of sets (Bonferroni), is enough for
"re-embed", too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boom_ray.evaluate.drift_search import TOP, Measured
from boom_ray.evaluate.significance import Bootstrap, Interval, Samples, mean_difference, task_difference

LOSS = 0.005  # of nDCG@10, 0..1
OVERLAP = 0.95
FEWEST = 50  # queries
SAME = 1e-5  # of 1 minus the cosine: float32 vectors of one model, made in other batches, differ by about 1e-6
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75)
_MORE = " More could settle it."
# name: what is subtracted from what; positive means that the old index does worse
_LOSSES = {"to_new_index": ("new", "mixed"), "to_today": ("old", "mixed")}


@dataclass(frozen=True)
class Verdict:
    """``reembed`` and why, in one sentence; ``shown`` is False where more queries could turn it round."""

    reembed: bool
    shown: bool
    reason: str

    def __str__(self) -> str:
        return f"{'Re-embed' if self.reembed else 'Keep the index'}: {self.reason}"


@dataclass(frozen=True)
class Drift:
    """Two versions of a model, compared on some sets."""

    old: str
    new: str
    sets: tuple[Measured, ...]

    @property
    def judged(self) -> list[Measured]:
        """The sets whose relevant documents are known."""
        return [m for m in self.sets if m.ndcg]

    @property
    def comparable(self) -> bool:
        """Old and new vectors have one dimension."""
        return all(a == b for m in self.sets for a, b in [m.dimensions])

    def overlap(self, pair: str, sets: Sequence[Measured] | None = None) -> Interval:
        """Mean overlap@10 of ``mixed/new``, ``mixed/old`` or ``new/old`` over sets, by default all."""
        values = {m.name: m.overlaps[pair] for m in sets or self.sets}
        return _mean(values, {name: np.zeros(len(v)) for name, v in values.items()})

    def change(self, first: str, second: str, sets: Sequence[Measured] | None = None) -> Interval:
        """Mean nDCG@10 of system ``first`` minus ``second`` over sets, by default all whose relevance is known."""
        chosen = sets or self.judged
        return _mean({m.name: m.ndcg[first] for m in chosen}, {m.name: m.ndcg[second] for m in chosen})

    def verdict(self) -> Verdict:
        """Re-embed or not, by the rule above."""
        if not self.comparable:
            old, new = next(m.dimensions for m in self.sets if m.dimensions[0] != m.dimensions[1])
            reason = f"old vectors have {old} numbers and new ones {new}, so new queries cannot search the old index."
            return Verdict(True, True, reason)
        if all(m.cosines.min() > 1 - SAME for m in self.sets):
            return Verdict(False, True, "every text has the same vector from both models.")
        return self._by_relevance() if self.judged else self._by_overlap()

    def _by_relevance(self) -> Verdict:
        loss, change = self.change("new", "mixed"), _points(self.change("mixed", "new"))
        lost = (
            f"new queries in the old index change nDCG@{TOP} by {change} against a new index; down to "
            f"{-100 * LOSS:.2f} is accepted"
        )
        for m in self.judged:
            alone = _mean({m.name: m.ndcg["new"]}, {m.name: m.ndcg["mixed"]}, 1 - 0.05 / len(self.judged))
            if loss.low <= LOSS < alone.low and len(self.judged) > 1:
                where = f"on {m.name} alone it is {_points(self.change('mixed', 'new', [m]))}"
                return Verdict(True, True, f"{lost}, and {where}.")
        if loss.high <= LOSS and self._queries >= FEWEST:
            return Verdict(False, True, f"{lost}.")
        if loss.low > LOSS:
            return Verdict(True, True, f"{lost}.")
        return Verdict(True, False, f"{lost}, and {self._queries} queries do not show that it holds.{_MORE}")

    def _by_overlap(self) -> Verdict:
        same = self.overlap("mixed/new")
        shared = (
            f"new queries find {_percent(same)} of their {TOP} nearest texts in the old index, too; "
            f"{100 * OVERLAP:.0f} % are asked for"
        )
        if same.low >= OVERLAP and self._queries >= FEWEST:
            return Verdict(False, True, f"{shared}.")
        if same.high < OVERLAP:
            return Verdict(True, True, f"{shared}.")
        return Verdict(True, False, f"{shared}, and {self._queries} queries do not show that.{_MORE}")

    @property
    def _queries(self) -> int:
        return sum(m.queries for m in self.judged or self.sets)

    def notes(self) -> list[str]:
        """What else an owner should know, as sentences."""
        if not self.judged:
            return ["Nothing here is known to be relevant: the verdict is on what changes, not on what gets worse."]
        lines = []
        if self.comparable:
            today = self.change("mixed", "old")
            lines.append(f"New queries in the old index change {_points(today)} against today (all old).")
        gain = self.change("new", "old")
        lines.append(f"With a new index the new model changes {_points(gain)} against today.")
        if gain.high < 0:
            lines.append("So the new model is worse than the old one here, with a new index, too: look at that first.")
        return lines

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; scores 0..1, intervals as {value, low, high}."""
        verdict = self.verdict()
        return {
            "old": self.old,
            "new": self.new,
            "verdict": {
                "reembed": verdict.reembed, "shown": verdict.shown, "text": str(verdict), "notes": self.notes(),
                "limits": {"ndcg_loss": LOSS, "overlap": OVERLAP},
            },
            "mean": self._numbers(self.sets),
            "sets": [{"name": m.name, "documents": m.documents, "queries": m.queries, "dimensions": list(m.dimensions),
                      **self._numbers([m])} for m in self.sets],
        }  # fmt: skip

    def _numbers(self, sets: Sequence[Measured]) -> dict[str, Any]:
        judged = [m for m in sets if m.ndcg]
        pairs = [pair for pair in ("mixed/new", "mixed/old", "new/old") if all(pair in m.overlaps for m in sets)]
        found: dict[str, Any] = {"cosine": _cosine(sets) if self.comparable else None}
        found["overlap"] = {pair: _plain(self.overlap(pair, sets)) for pair in pairs}
        if judged:
            found["ndcg"] = {s: float(np.mean([m.ndcg[s].mean() for m in judged])) for s in judged[0].ndcg}
            found["gain"] = _plain(self.change("new", "old", judged))
            if self.comparable:
                found["loss"] = {name: _plain(self.change(a, b, judged)) for name, (a, b) in _LOSSES.items()}
        return found


def _mean(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], level: float = 0.95) -> Interval:
    """Mean over sets of the difference of values per query."""
    one, other = ({name: Samples("mean", name, v) for name, v in side.items()} for side in (first, second))
    return mean_difference(one, other, Bootstrap(level=level))


def _cosine(sets: Sequence[Measured]) -> dict[str, Any]:
    """Mean with its interval and quantiles over all texts of the sets."""
    values = np.concatenate([m.cosines for m in sets])
    quantiles = {f"{q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
    mean = float(values.mean())
    interval = task_difference(values.tolist()) if len(values) > 2 else Interval(mean, mean, mean)
    return {"mean": _plain(interval), "quantiles": quantiles, "texts": len(values)}


def _plain(interval: Interval) -> dict[str, float]:
    return {"value": interval.difference, "low": interval.low, "high": interval.high}


def _points(interval: Interval) -> str:
    a, low, high = (100 * x for x in (interval.difference, interval.low, interval.high))
    return f"{a:+.2f} points [{low:+.2f}, {high:+.2f}]"


def _percent(share: Interval) -> str:
    a, low, high = (100 * x for x in (share.difference, max(0.0, share.low), min(1.0, share.high)))
    return f"{a:.1f} % [{low:.1f}, {high:.1f}]"
