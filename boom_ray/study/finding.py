"""What is kept of a finished case beside its scores: what it cost, and how its members became one model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boom_ray.ledger import Ledger
from boom_ray.records import member_seconds
from boom_ray.search.coefficients import effective_scale
from boom_ray.search.points import Point
from boom_ray.study.conditions import Case

FILE = "condition.json"


@dataclass(frozen=True)
class Found:
    """What is kept of a finished case beside its scores: the file of its artifact. Fields as of :class:`SeedResult`;
    ``rows``: training rows of the corpus."""

    passes: float
    device_seconds: float
    rows: int
    ratios: Sequence[float]
    weights: Sequence[float]
    scale: float
    cosine: Sequence[Sequence[float]]
    found: Mapping[str, Any] | None

    def write(self, folder: Path, case: Case) -> None:
        """Into the artifact's folder, with the place of the case's scores."""
        told = {**asdict(self), "scores": f"{case.scores.kind}/{case.scores.name}"}
        (folder / FILE).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, ledger: Ledger, case: Case) -> Found:
        raw = ledger.read_json(case.key, FILE)
        return cls(**{name: value for name, value in raw.items() if name != "scores"})


def found_of(ledger: Ledger, case: Case, point: Point | None) -> Found:
    """What a case's members cost and how they were merged: at ``point``; None where nothing was."""
    trained = [ledger.manifest(member)["meta"] for member in case.trained]
    counts = ledger.read_json(case.keys.bags, "counts.json")["datasets"]
    rows = sum(dataset["train"] for dataset in counts.values())
    return Found(
        passes=sum(meta["rows"] for meta in trained) / rows,
        device_seconds=sum(map(member_seconds, trained)),
        rows=rows,
        ratios=[rule.ratio for rule in case.keys.rules],
        weights=list(point.mean_weights()) if point else [],
        scale=effective_scale(point) if point else 1.0,
        cosine=_cosine(ledger, case) if point and len(case.keys.members) > 1 else [],
        found=_searched(ledger, case) if case.condition.weights == "searched" else None,
    )


def _cosine(ledger: Ledger, case: Case) -> list[list[float]]:
    from boom_ray.merge.gram import Grams

    matrix = Grams.load(ledger.path(case.keys.grams) / "grams.npz").cosine()
    return [[float(value) for value in row] for row in matrix]


def _searched(ledger: Ledger, case: Case) -> dict[str, Any]:
    meta = ledger.manifest(case.keys.search)["meta"]
    return {"trials": case.recipe.search.trials, **{name: meta[name] for name in ("value", "weights", "scale")}}
