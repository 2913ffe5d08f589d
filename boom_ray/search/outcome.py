"""What a search leaves in the ledger: ``search.json`` beside ``trials.jsonl`` and the row values on half B."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boom_ray.config import Recipe
from boom_ray.evaluate.means import even, over_types
from boom_ray.evaluate.samples import Samples, read_samples
from boom_ray.evaluate.significance import Contrast, Paired
from boom_ray.plan import Keys
from boom_ray.search.baselines import Outcome, Row
from boom_ray.search.trial_log import Trial, spent_seconds

FILE = "search.json"
HALF_B = "half_b"
REFERENCES = ("ratio", "uniform", "best member")
OBJECTIVES = {
    "loss": "training loss on dev half A and out-of-bag rows, relative to the base (lower is better)",
    "metric": "1 - mean metric of the task types on dev half A and out-of-bag rows (lower is better)",
}


def write_outcome(outcome: Outcome, recipe: Recipe, keys: Keys, types: Mapping[str, str], out: Path) -> dict[str, Any]:
    """Write ``search.json`` from what was judged and from the samples in ``out``.

    Args:
        types: task type of every dataset.
    """
    search = recipe.search
    samples = {row.baseline.name: read_samples(out / HALF_B / row.baseline.name) for row in outcome.rows}
    weights = _weights({name for found in samples.values() for name in found}, types, search.aggregate)
    trials = [t for t in outcome.trials if t.rung == outcome.best.rung]
    numbers = {t.number for t in outcome.trials}
    found = {
        "searcher": search.searcher,
        "best": outcome.best.number,
        "point": outcome.best.point.to_json() if outcome.best.point else None,
        "value": outcome.best.value,
        "members": [f"member-{i}" for i in keys.ensemble],
        "ratios": list(keys.ratios),
        "objective": OBJECTIVES[search.objective] + f", mean over {search.aggregate}",
        "higher_is_better": False,
        "metric_higher_is_better": True,
        "settings": search.model_dump(mode="json"),
        "groups": list(outcome.best.point.weights) if outcome.best.point else [],
        "types": dict(types),
        "trials": len(numbers),
        "judged": len(outcome.trials),
        "failed": len({t.number for t in outcome.trials if t.value is None}),
        "device_seconds": spent_seconds(outcome.trials),
        "seconds": _mean_seconds(trials),
        "alone": [{"name": f"member-{i}", **_judged(t)} for i, t in zip(keys.ensemble, outcome.members, strict=True)],
        "baselines": [_entry(row, samples, weights) for row in outcome.rows],
    }
    (out / FILE).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return found


def _weights(names: set[str], types: Mapping[str, str], aggregate: str) -> dict[str, float]:
    ordered = [name for name in types if name in names]
    if not ordered:
        return {}
    return over_types({name: types[name] for name in ordered}) if aggregate == "types" else even(ordered)


def _entry(row: Row, samples: Mapping[str, Mapping[str, Samples]], weights: Mapping[str, float]) -> dict[str, Any]:
    baseline, a, b = row.baseline, row.a, row.b
    intervals = {r: _interval(baseline.name, r, samples, weights) for r in REFERENCES if r != baseline.name}
    return {
        "name": baseline.name,
        "how": baseline.how,
        "point": baseline.point.to_json() if baseline.point else None,
        "a": a.value,
        "b": b.value,
        "a_score": a.score,
        "b_score": b.score,
        "by_dataset_a": dict(a.by_dataset),
        "by_dataset_b": dict(b.by_dataset),
        "metric_b": dict(b.parameters.get("metric") or {}),
        "rows_a": a.rows,
        "rows_b": b.rows,
        "seconds": a.seconds.get("total"),
        "b_interval": intervals.get("ratio"),
        "intervals": intervals,
        "error": a.error or b.error,
    }


def _interval(
    name: str, reference: str, samples: Mapping[str, Mapping[str, Samples]], weights: Mapping[str, float]
) -> list[float] | None:
    """Mean metric on half B minus the reference's, with both ends of its 95 % interval."""
    if not weights or not samples.get(name) or not samples.get(reference):
        return None
    paired = Paired({model: samples[model] for model in (name, reference)})
    found = paired.interval(Contrast((name,), (reference,)), weights)
    if found is None or not all(map(math.isfinite, (found.difference, found.low, found.high))):
        return None
    return [found.difference, found.low, found.high]


def _judged(trial: Trial) -> dict[str, Any]:
    return {"value": trial.value, "score": trial.score, "rows": trial.rows, "error": trial.error}


def _mean_seconds(trials: Sequence[Trial]) -> dict[str, float]:
    """By what took them, mean over the trials that have a value."""
    finished = [t.seconds for t in trials if t.value is not None and t.seconds]
    names = sorted({name for seconds in finished for name in seconds})
    return {n: math.fsum(s.get(n, 0.0) for s in finished) / len(finished) for n in names}


def table_lines(found: Mapping[str, Any]) -> list[str]:
    """The table of a search for a terminal: half A, half B, and half B against the ratio merge with its interval."""
    lines = [
        f"{found['searcher']}: {found['trials']} trials, {found['failed']} failed, "
        f"{found['device_seconds']:.1f} device-seconds; trial {found['best']} is best",
        f"{'merge':14} {'objective A':>11} {'objective B':>11} {'metric B':>9}  {'minus ratio, points [95 %]':30} by",
    ]
    for entry in found["baselines"]:
        interval = entry["b_interval"]
        against = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * x for x in interval)) if interval else "-"
        numbers = f"{_number(entry['a']):>11} {_number(entry['b']):>11} {_number(entry['b_score'], 100, 2):>9}"
        lines.append(f"{entry['name']:14} {numbers}  {against:30} {_shown(entry['point'])}")
    lines.append(
        "Objective: " + found["objective"] + ". Half A is searched on; half B (dev rows, in-domain) is reported."
    )
    return lines


def _number(value: float | None, factor: float = 1.0, digits: int = 4) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _shown(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return ""
    groups = point["weights"]
    text = " ".join(f"{w:.3f}" for w in next(iter(groups.values())))
    more = f" in {next(iter(groups))}, {len(groups) - 1} more groups" if len(groups) > 1 else ""
    scale = f", scale {point['scale']:.3f}" if point["scale"] != 1 else ""
    base = f", base {point['base']:.3f}" if point["base"] else ""
    return f"{text}{more}{scale}{base} ({point['method']})"
