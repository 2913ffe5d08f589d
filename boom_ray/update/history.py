"""The chain of a model as rows: data, cost, weights and scores of every version."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from boom_ray.chain import Version
from boom_ray.update.scores import GROUPS
from boom_ray.update.task import Place, find_place


def history(model: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per version, the first version first, up to ``model``: a run directory (its newest version) or a version.

    Raises:
        BoomError: it is in no run directory, or the run has not published.
    """
    place = find_place(os.fspath(model), None, None)
    return [_row(place, version) for version in place.line]


def _row(place: Place, version: Version) -> dict[str, Any]:
    head = {"version": version.name, "published": version.key.name, "finished": version.finished}
    told = version.update
    if told is None:
        return {**head, **_of_run(place, version)}
    return {**head, **_of_update(told)}


def _of_run(place: Place, version: Version) -> dict[str, Any]:
    from boom_ray.report.summary import collect
    from boom_ray.report.tables import domain_mean

    summary = collect(place.ledger, place.keys, place.recipe)
    chosen = next(model for model in summary["models"] if model["name"] == summary["chosen"])
    means = [domain_mean(summary, chosen, domain) for domain in ("in_domain", "out_of_domain")]
    old_id, ood = (None if mean is None else mean / 100 for mean in means)
    corpus = version.meta.get("corpus") or []
    named = [entry["name"] for entry in corpus if entry.get("rows")]
    return {
        "data": named[0] if len(named) == 1 else f"{len(named)} datasets",
        "rows": sum(entry["rows"] for entry in corpus),
        "bag": None,
        "weights": f"{place.recipe.merge.weights}, {len(place.keys.ensemble)} members",
        "share": None,
        "left": 1.0,
        "seconds": sum(stage["device_seconds"] or 0.0 for stage in summary["stages"]),
        "scores": {"old_id": old_id, "ood": ood, "new": None},
        "index": "-",
    }


def _of_update(told: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: counts["rows"] for name, counts in told["data"]["datasets"].items() if counts["rows"]}
    apart = told["cost"]["apart"].values()
    return {
        "data": next(iter(kept)) if len(kept) == 1 else f"{len(kept)} datasets",
        "rows": sum(kept.values()),
        "bag": told["bag"]["rows"],
        "weights": told["settings"]["weights"],
        "share": told["share"],
        "left": told["parts"][0],
        "seconds": told["cost"]["update"]["seconds"] + sum(cost["seconds"] for cost in apart),
        "scores": {name: told["scores"].get(label) for name, label in GROUPS.items()},
        "index": "re-embed" if told["drift"]["reembed"] else "keep",
    }
