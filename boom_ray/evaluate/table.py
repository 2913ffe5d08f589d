"""Scores of several models on the same sets, arranged for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boom_ray.evaluate.compare import Task, means
from boom_ray.evaluate.sets import EvalSet


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one or more models for people: a row is a set, or a mean over sets, and its score by each model.

    A score is None where the model has none; a mean is None where one of its scores is.
    """

    models: tuple[str, ...]
    rows: tuple[tuple[EvalSet, tuple[float | None, ...]], ...]
    means: tuple[tuple[str, tuple[float | None, ...]], ...]
    in_domain: tuple[float | None, ...]
    out_of_domain: tuple[float | None, ...]


def table(scores: Mapping[str, Mapping[str, float]], sets: Sequence[EvalSet]) -> ScoreTable:
    """Arrange ``{model: {set: score}}``: one row per set, in-domain first, and the means.

    The means are those of :func:`boom_ray.evaluate.compare.means`: by type, domain and benchmark, over types, over all.
    A domain's mean is None where it has no set.
    """
    models = tuple(scores)
    ordered = sorted(sets, key=lambda entry: entry.domain != "in_domain")
    rows = tuple((entry, tuple(scores[m].get(entry.name) for m in models)) for entry in ordered)

    def mean(weights: Mapping[str, float], model: str) -> float | None:
        parts = [(weight, scores[model].get(name)) for name, weight in weights.items()]
        known = [weight * score for weight, score in parts if score is not None]
        return math.fsum(known) if known and len(known) == len(parts) else None

    def of_domain(domain: str) -> tuple[float | None, ...]:
        names = [entry.name for entry in sets if entry.domain == domain]
        return tuple(mean({name: 1 / len(names) for name in names}, model) for model in models)

    shown = [(label, tuple(mean(w, m) for m in models)) for label, _, w in means([Task.of(entry) for entry in ordered])]
    return ScoreTable(models, rows, tuple(shown), of_domain("in_domain"), of_domain("out_of_domain"))
