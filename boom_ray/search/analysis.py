"""What searches have found: plain tables for a page, a file or a notebook.

    from boom_ray.search.analysis import importance, read_searches, table
    found = read_searches(Path("runs/quickstart"))[0]
    pandas.DataFrame(table([found]))

Rows are dictionaries with the same keys; ``read_searches`` and ``read_results`` (a ``ray.tune.ResultGrid``) make the
searches that all functions take.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.search.analysis_sources import Found as Found
from boom_ray.search.analysis_sources import Row as Row
from boom_ray.search.analysis_sources import Take as Take
from boom_ray.search.analysis_sources import read_results as read_results
from boom_ray.search.analysis_sources import read_searches as read_searches

LEAST = 8  # finite trials that an importance needs: a forest of fewer tells nothing
_PARAMETERS = ("weight:", "has:", "config:")
_SINGLE = ("method", "scale", "base")
_SEED = 17


def table(searches: Sequence[Found], every: bool = False) -> list[Row]:
    """One row per trial of all searches, ``search`` and ``searcher`` first; ``every``: one per judgement of a trial.

    ``taken`` says which judgement stands for a trial that has several. Columns that a search has not are None.
    """
    rows = [
        {"search": found.name, "searcher": found.searcher, **row, **({"taken": "every"} if every else {})}
        for found in searches
        for row in (found.lines if every else found.trials)
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def comparable(found: Found) -> list[Row]:
    """The judgements whose values can be compared: of one rung, the one that has most of them, all with a value."""
    if found.kind == "tune":
        return [row for row in found.trials if row["value"] is not None]
    finite = [row for row in found.lines if row["value"] is not None]
    counted = Counter(row["rung"] for row in finite)
    if not counted:
        return []
    most = max(counted, key=lambda rung: (counted[rung], rung or 0))
    return [row for row in finite if row["rung"] == most]


def parameters(found: Found) -> list[str]:
    """The columns that a search has varied: weights, scale, method, ratios, or a Tune config."""
    rows = comparable(found)
    names = [name for name in (rows[0] if rows else {}) if name.startswith(_PARAMETERS) or name in _SINGLE]
    return [name for name in names if len({row[name] for row in rows if row[name] is not None}) > 1]


def weighable(found: Found) -> tuple[list[Row], list[str]]:
    """The judgements and parameters that an importance is taken of; nothing where there are too few of them."""
    names = parameters(found)
    rows = [row for row in comparable(found) if all(row[name] is not None for name in names)]
    enough = len(rows) >= LEAST and names and len({row["value"] for row in rows}) > 1
    return (rows, names) if enough else ([], [])


def importance(found: Found) -> list[Row]:
    """How much of the variance of the value each parameter explains: fANOVA (Hutter et al. 2014) by Optuna.

    Shares of a random forest's variance, highest first, in sum 1. Weights on the simplex are not independent of one
    another, so a member's share also holds what its neighbours gave way for. Empty with fewer than :data:`LEAST`
    comparable trials, or where nothing varies.
    """
    rows, names = weighable(found)
    if not rows:
        return []
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize" if found.lower else "maximize")
    spans = {name: _distribution([row[name] for row in rows]) for name in names}
    for row in rows:
        chosen = {name: row[name] if isinstance(row[name], str) else float(row[name]) for name in names}
        study.add_trial(optuna.trial.create_trial(params=chosen, distributions=spans, value=row["value"]))
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=_SEED))
    return [{"search": found.name, "parameter": name, "importance": share} for name, share in shares.items()]


def _distribution(values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if any(isinstance(value, str) for value in values):
        return CategoricalDistribution(sorted(set(map(str, values))))
    return FloatDistribution(float(min(values)), float(max(values)))


def convergence(found: Found) -> list[Row]:
    """The best value so far, trial by trial, with the device-seconds that it took; over comparable trials."""
    rows, best, seconds = [], math.inf, 0.0
    sign = 1 if found.lower else -1
    spent: dict[int, float] = {}
    for row in found.lines:
        spent[row["trial"]] = spent.get(row["trial"], 0.0) + (row.get("seconds:total") or 0.0)
    for row in sorted(comparable(found), key=lambda row: row["trial"]):
        best, seconds = min(best, sign * row["value"]), seconds + spent[row["trial"]]
        rows.append({"search": found.name, "trial": row["trial"], "value": row["value"], "best": sign * best,
                     "seconds": seconds})  # fmt: skip
    return rows


def overview(searches: Sequence[Found]) -> list[Row]:
    """One row per search, to compare them: trials, failures, best, cost, distance from uniform and
    from ratio weights."""
    rows = []
    for found in searches:
        best = found.best
        rows.append(
            {
                "search": found.name,
                "searcher": found.searcher,
                "trials": len(found.trials),
                "failed": sum(row["failed"] for row in found.trials),
                "best": best["value"] if best else None,
                "best trial": best["trial"] if best else None,
                "rung": best["rung"] if best else None,
                "device-seconds": _spent(found),
                "to uniform": best.get("distance_uniform") if best else None,
                "to ratio": best.get("distance_ratio") if best else None,
                "ratios": best.get("ratios") if best else None,
            }
        )
    return rows


def _spent(found: Found) -> float | None:
    trials = math.fsum(row.get("seconds:total") or 0.0 for row in found.lines)
    trainings = math.fsum(t["device_seconds"] for t in found.result.get("trainings", ()))
    return trials + trainings or None


def half_b(found: Found) -> list[Row]:
    """What the search itself says of half B, which it did not see: baselines, or sets that are trained to the end.

    ``score`` in 0..1, higher is better; ``difference``, ``low``, ``high``: its 95 % interval against ``against``.
    """
    rows = []
    for entry in found.result.get("baselines", ()):
        span = entry.get("b_interval") or (None, None, None)
        rows.append({"search": found.name, "model": entry["name"], "a": entry.get("a"), "b": entry.get("b"),
                     "score": entry.get("b_score"), "difference": span[0], "low": span[1], "high": span[2],
                     "against": "ratio"})  # fmt: skip
    for entry in found.result.get("table", ()):
        span = entry.get("to_best") or (None, None, None)
        rows.append({"search": found.name, "model": entry["name"], "a": entry.get("a"), "b": entry.get("b"),
                     "score": entry.get("metric_b"), "difference": span[0], "low": span[1], "high": span[2],
                     "against": "the best set"})  # fmt: skip
    return rows


def id_against_ood(run: Path) -> list[Row]:
    """In-domain and out-of-domain means of a run's models over its base, in score units with their 95 % intervals.

    Read from the run's report; empty where it has none, or lacks sets of one of the two. Models without an interval
    are left out.

    Raises:
        BoomError: the report is damaged.
    """
    file = run / "report" / "summary.json"
    if not file.is_file():
        return []
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise BoomError(f"{file} is damaged. `boom-ray report {run}` writes it again.") from None
    means = ((summary.get("intervals") or {}).get("means") or {}).get("base") or {}
    kinds = {model["name"]: model["kind"] for model in summary.get("models", ())}
    rows = []
    for model, found in means.items():
        if "in_domain" in found and "out_of_domain" in found:
            row = {"run": run.name, "model": model, "kind": kinds.get(model, "")}
            for short, domain in (("id", "in_domain"), ("ood", "out_of_domain")):
                row |= dict(zip((short, f"{short}_low", f"{short}_high"), found[domain], strict=True))
            rows.append(row)
    return rows


def write_table(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write rows as ``.csv`` or ``.parquet``.

    Raises:
        BoomError: another ending.
    """
    if file.suffix not in (".csv", ".parquet"):
        raise BoomError(f"{file}: a table ends in .csv or .parquet.")
    import pyarrow as pa

    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
    made = pa.table({name: _column(values) for name, values in columns.items()})
    if file.suffix == ".csv":
        from pyarrow import csv

        csv.write_csv(made, file)
    else:
        from pyarrow import parquet

        parquet.write_table(made, file)


def _column(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    if any(isinstance(value, str) for value in values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    if any(isinstance(value, float) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array(values)
