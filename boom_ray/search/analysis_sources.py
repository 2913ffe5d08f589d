"""Searches read into plain tables: from a run's ledger, from Ray Tune's experiment folders, from a ResultGrid.

Files are read as JSON alone: nothing is unpickled, and Ray need not be installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from boom_ray.config import BoomError
from boom_ray.search.points import ALL, Point
from boom_ray.search.trial_log import FILE, Trial, TrialLog
from boom_ray.stores.mirrors import fetch, listed, opened

Row = dict[str, Any]
Take = Literal["last", "best"]
RATIO_FILE = "ratio_trials.jsonl"
RESULT = "search.json"
_FILES = {FILE: "weights", RATIO_FILE: "ratios"}
_TUNES_OWN = {"config", "done", "training_iteration", "trial_id", "date", "timestamp", "time_this_iter_s",
              "time_total_s", "pid", "hostname", "node_ip", "time_since_restore", "iterations_since_restore",
              "experiment_tag", "checkpoint_dir_name", "should_checkpoint"}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """One search as a table.

    Attributes:
        name: what people call it; kind: weights, ratios or tune; objective: what ``value`` is.
        lines: a row per trial and judgement: a trial has several where it was judged on several rungs, or reported
            several times. trials: one row each, ``taken`` last or best.
        lower: a lower value is better. result: what the search itself has written of its end, if it has ended.
        run: the run directory that it belongs to.
    """

    name: str
    kind: Literal["weights", "ratios", "tune"]
    searcher: str
    lines: Sequence[Row]
    trials: Sequence[Row]
    lower: bool = True
    objective: str = "objective"
    result: Mapping[str, Any] = field(default_factory=dict)
    run: Path | None = None

    @property
    def best(self) -> Row | None:
        """The best trial: of the highest rung that has a value, as a search with rungs ends there; ties go to the lower
        number. None where all failed."""
        finite = [row for row in self.trials if row["value"] is not None]
        top = max((row["rung"] or 0 for row in finite), default=0)
        last = [row for row in finite if (row["rung"] or 0) == top]
        sign = 1 if self.lower else -1
        return min(last, key=lambda row: (sign * row["value"], row["trial"])) if last else None


def read_searches(path: Path, take: Take = "last", metric: str | None = None, mode: str | None = None) -> list[Found]:
    """All searches at a path: a run directory, a search in it, a file of trials, or an experiment of Ray Tune.

    Args:
        take: which of several judgements of a trial stands for it.
        metric, mode: of an experiment of Ray Tune; its own metric, and min, where they are left out.

    Raises:
        BoomError: there is none, or a file is damaged.
    """
    path = _here(path)
    if not path.exists():
        raise BoomError(f"{path} does not exist. Give a run directory, a search in one, or an experiment of Ray Tune.")
    if path.is_file():
        if path.name not in _FILES:
            raise BoomError(f"{path}: searches keep their trials in {' or '.join(_FILES)}.")
        return [_of_file(path, take)]
    files = [path / name for name in _FILES if (path / name).is_file()] or _of_run(path)
    if files:
        return [_of_file(file, take) for file in files]
    if any(path.glob("experiment_state-*.json")) or any(path.glob("*/result.json")):
        return [_of_tune(path, take, metric, mode)]
    raise BoomError(
        f"{path} holds no search: no {' or '.join(_FILES)}, and no experiment_state-*.json of Ray Tune. "
        f"`boom-ray search weights` and `boom-ray search ratios` make one."
    )


def _here(path: Path) -> Path:
    """A run's searches are brought where it lies in a bucket."""
    path = opened(path)
    for mirrored in listed(path):
        if mirrored.name in _FILES:
            fetch(mirrored.parent)
    return path


def _of_run(root: Path) -> list[Path]:
    """The finished searches of a run; where there is none, those that are under way."""
    done = sorted(f for name in _FILES for f in root.glob(f"*/[!.]*/{name}") if f.parent.parent.name != "scratch")
    return done or sorted(f for name in _FILES for f in root.glob(f"scratch/*/*/{name}"))


def _of_file(file: Path, take: Take) -> Found:
    kind, result = _FILES[file.name], _result(file.parent / RESULT)
    trials = TrialLog(file).replay()
    if not trials:
        raise BoomError(f"{file} holds no trial yet.")
    root = next((p for p in file.parents if (p / "run.json").is_file()), None)
    members, ratios = result.get("members") or [], result.get("ratios") or []
    rows = [_ratio_row(t) if kind == "ratios" else _weight_row(t, members, ratios) for t in trials]
    lines = _filled([{"taken": take, **row} for row in rows])
    searcher = str(result.get("searcher") or trials[0].searcher)
    objective = str(result.get("objective") or "objective, lower is better")
    name = f"{(root or file.parent).name} {searcher}"
    return Found(name, kind, searcher, lines, taken(lines, take, True), True, objective, result, root)  # type: ignore[arg-type]


def _result(file: Path) -> Mapping[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _common(trial: Trial) -> Row:
    return {
        "trial": trial.number,
        "rung": trial.rung,
        "value": trial.value,
        "score": trial.score,
        "failed": trial.value is None,
        "error": trial.error,
        "rows": trial.rows,
    }


def _measured(trial: Trial) -> Row:
    datasets = {f"dataset:{name}": value for name, value in trial.by_dataset.items()}
    return {**{f"seconds:{name}": value for name, value in trial.seconds.items()}, **datasets}


def _weight_row(trial: Trial, members: Sequence[str], ratios: Sequence[float]) -> Row:
    row = _common(trial)
    if trial.point is not None:
        point = trial.point
        names = members or [f"member-{i}" for i in range(point.members)]
        row |= {"method": point.method, "scale": point.scale, "base": point.base}
        for group, weights in point.weights.items():
            of = "" if group == ALL else f"{group}:"
            row |= {f"weight:{of}{name}": weight for name, weight in zip(names, weights, strict=True)}
        row |= distances(point, ratios)
    return row | _measured(trial)


def distances(point: Point, ratios: Sequence[float]) -> dict[str, float]:
    """How far weights lie from uniform and from ratio weights: the share of the whole that would have to move (half the
    sum of absolute differences, 0 to 1), mean over tensor groups."""
    references = {"distance_uniform": [1.0] * point.members}
    if len(ratios) == point.members:
        references["distance_ratio"] = list(ratios)
    found = {}
    for name, reference in references.items():
        total = math.fsum(reference)
        each = [
            math.fsum(abs(w - r / total) for w, r in zip(weights, reference, strict=True)) / 2
            for weights in point.weights.values()
        ]
        found[name] = math.fsum(each) / len(each)
    return found


def _ratio_row(trial: Trial) -> Row:
    ratios = [float(ratio) for ratio in trial.parameters["ratios"]]
    row = _common(trial) | {"members": len(ratios), "ratios": " + ".join(f"{100 * r:.4g} %" for r in ratios)}
    row["passes"] = math.fsum(ratios)  # over the corpus, what training costs
    row |= {f"has:{100 * r:.4g} %": ratios.count(r) for r in sorted(set(ratios))}
    return row | _measured(trial)


def _filled(rows: list[Row]) -> list[Row]:
    """All rows with the same columns; what a row lacks is None, and 0 for a ratio that a set does not hold."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    absent = {name: 0 if name.startswith("has:") else None for name in columns}
    return [{**absent, **row} for row in rows]


def taken(lines: Iterable[Row], take: Take, lower: bool) -> list[Row]:
    """One row per trial: its last judgement, or the one with the best value (the last where all failed)."""
    by_trial: dict[Any, list[Row]] = {}
    for row in lines:
        by_trial.setdefault(row["trial"], []).append(row)
    chosen = []
    for rows in by_trial.values():
        finite = [row for row in rows if row["value"] is not None]
        best = (min if lower else max)(finite, key=lambda row: row["value"]) if finite else rows[-1]
        chosen.append(rows[-1] if take == "last" else best)
    return chosen


def _of_tune(path: Path, take: Take, metric: str | None, mode: str | None) -> Found:
    states = sorted(path.glob("experiment_state-*.json"))
    state = json.loads(states[-1].read_text()) if states else {}
    wanted = metric or state.get("runner_data", {}).get("_metric")
    reports = _tune_reports(path, state)
    return _tune_found(path.name, reports, wanted, mode, take)


def _tune_reports(path: Path, state: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Config and reports by trial: from each trial's result.json, else the last one that the experiment's state has."""
    found: dict[str, tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = {}
    for trial_text, metadata_text in state.get("trial_data", []):
        trial, last = json.loads(trial_text), json.loads(metadata_text).get("last_result") or {}
        found[trial["trial_id"]] = (trial.get("config") or {}, [last] if last else [])
    for file in sorted(path.glob("*/result.json")):
        reports = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
        if reports:
            identity = str(reports[0].get("trial_id", file.parent.name))
            config = reports[-1].get("config") or found.get(identity, ({}, []))[0]
            found[identity] = (config, reports)
    return found


def read_results(
    results: Any, metric: str | None = None, mode: str | None = None, take: Take = "last", name: str = "tune"
) -> Found:
    """A ``ray.tune.ResultGrid`` as a table; metric and mode are the Tuner's own where they are left out.

    Raises:
        BoomError: no metric is known, or no trial has reported it.
    """
    known = getattr(results, "_experiment_analysis", None)
    reports: dict[str, tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = {}
    for number, result in enumerate(results):
        frame = result.metrics_dataframe
        history = frame.to_dict("records") if frame is not None and len(frame) else []
        last = dict(result.metrics or {})
        reports[f"{number:06d}"] = (last.get("config") or {}, [*history[:-1], *([last] if last else [])])
    metric, mode = metric or getattr(known, "default_metric", None), mode or getattr(known, "default_mode", None)
    return _tune_found(name, reports, metric, mode, take)


def _tune_found(
    name: str,
    reports: Mapping[str, tuple[Mapping[str, Any], list[Mapping[str, Any]]]],
    metric: str | None,
    mode: str | None,
    take: Take,
) -> Found:
    if mode not in (None, "min", "max"):
        raise BoomError(f"--mode is min or max, not {mode!r}.")
    shown = sorted({key for _, rows in reports.values() for row in rows for key in numbers(row)})
    if metric is None or metric not in shown:
        asked = "no metric is named" if metric is None else f"no trial has reported '{metric}'"
        raise BoomError(f"{name}: {asked}. Give --metric; there are {', '.join(shown) or 'none'}.")
    order = sorted(reports, key=lambda key: (reports[key][0].get("number", math.inf), key))
    lines = []
    for number, key in enumerate(order):
        config, rows = reports[key]
        kept = {k: v for k, v in flat(config).items() if isinstance(v, int | float | str | bool)}
        settings = {f"config:{k}": v for k, v in kept.items() if (k, v) != ("number", number)}  # names the trial only
        for row in rows or [{}]:
            value = numbers(row).get(metric)
            finite = value is not None and math.isfinite(value)
            others = {f"metric:{k}": v for k, v in numbers(row).items() if k != metric}
            head = {"trial": number, "rung": None, "value": value if finite else None, "failed": not finite}
            lines.append({"taken": take, **head, "error": None, "id": key, **settings, **others})
    lower = mode != "max"
    objective = f"{metric}, {'lower' if lower else 'higher'} is better" + (" (assumed)" if mode is None else "")
    filled = _filled(lines)
    return Found(name, "tune", "Ray Tune", filled, taken(filled, take, lower), lower, objective)


def numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report, nested names with slashes, without Tune's own."""
    kept = {name: value for name, value in report.items() if name not in _TUNES_OWN and not name.startswith("config/")}
    return {k: float(v) for k, v in flat(kept).items() if isinstance(v, int | float) and not isinstance(v, bool)}


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with slashes in the names."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= {f"{name}/{k}": v for k, v in flat(value).items()} if isinstance(value, Mapping) else {name: value}
    return found
