"""Scores of several models on the same sets, arranged for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boom_ray.evaluate.sets import EvalSet


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one or more models for people: a row is a set and its score by each model, None where it has none."""

    models: tuple[str, ...]
    rows: tuple[tuple[EvalSet, tuple[float | None, ...]], ...]
    in_domain: tuple[float | None, ...]
    out_of_domain: tuple[float | None, ...]


def table(scores: Mapping[str, Mapping[str, float]], sets: Sequence[EvalSet]) -> ScoreTable:
    """Arrange ``{model: {set: score}}``: one row per set, in-domain first, and the mean per model and domain.

    A mean is None where the model has no score on one of the domain's sets, or the domain has no set.
    """
    models = tuple(scores)
    ordered = sorted(sets, key=lambda entry: entry.domain != "in_domain")
    rows = tuple((entry, tuple(scores[m].get(entry.name) for m in models)) for entry in ordered)

    def mean(model: str, domain: str) -> float | None:
        known = [scores[model].get(entry.name) for entry in sets if entry.domain == domain]
        there = [score for score in known if score is not None]
        return math.fsum(there) / len(there) if there and len(there) == len(known) else None

    in_domain, out_of_domain = (tuple(mean(m, domain) for m in models) for domain in ("in_domain", "out_of_domain"))
    return ScoreTable(models, rows, in_domain, out_of_domain)
