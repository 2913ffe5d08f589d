"""What an update did and found, as one plain dict: the input of its report, its card and its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.chain import Version, mixed
from boom_ray.data.core import UPDATE
from boom_ray.evaluate.samples import Samples
from boom_ray.evaluate.scored import model_samples
from boom_ray.evaluate.significance import Contrast, Interval, Paired
from boom_ray.ledger import Key
from boom_ray.report.update import write_update_page
from boom_ray.update.costs import account
from boom_ray.update.retrain import keys_of, retrained, score_key
from boom_ray.update.scores import GROUPS, evaluation, groups_of_sets
from boom_ray.update.task import Job

BASE, CURRENT, MEMBER, UPDATED, RETRAIN = "base", "current model", "new member", "update", "full retrain"


@dataclass(frozen=True)
class Model:
    """A row of the table: what it is called, its scores by set, what they were made from, its dev losses by half."""

    name: str
    scores: Mapping[str, float]
    samples: Mapping[str, Samples]
    dev: Mapping[str, Mapping[str, float]]


def write_update_report(job: Job) -> tuple[dict[str, Any], Path]:
    """Collect and write ``updates/VERSION/summary.json`` and ``index.html`` in the run directory."""
    summary = collect(job)
    folder = f"updates/{job.keys.published.name}"
    job.ledger.write_text(f"{folder}/summary.json", json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return summary, job.ledger.write_text(f"{folder}/index.html", write_update_page(summary))


def collect(job: Job) -> dict[str, Any]:
    """Everything that is known of an update; its models must have been scored."""
    keys, ledger = job.keys, job.ledger
    again = keys_of(job) if retrained(job) else None
    models = _models(job, again)
    bound = ledger.manifest(keys.bound)["meta"]
    groups = groups_of_sets(job, evaluation(job))
    summary = {
        "name": job.recipe.name,
        "version": keys.name,
        "published": f"published/{keys.published.name}",
        "parent": {"version": job.stand.version.name, "published": f"published/{job.stand.version.key.name}"},
        "settings": job.settings.model_dump(mode="json"),
        "data": ledger.read_json(keys.fresh, "counts.json"),
        "bag": _bag(job),
        "weights": bound["point"],
        "bound": {name: bound.get(name) for name in ("step", "drift", "limit", "texts")},
        "groups": groups,
        "scores": {model.name: dict(model.scores) for model in models},
        "table": table(models, groups),
        "dev": _dev(models),
        "drift": ledger.read_json(keys.drift, "drift.json"),
        "cost": account(job, again, _cpus(job)),
        "chain": [_link(version) for version in job.line],
        "share": _share(bound),
        "parts": _parts(job, _share(bound)),
    }
    return {**summary, "verdict": verdict(summary)}


def _models(job: Job, again: Any) -> list[Model]:
    names = {"base": BASE, job.stand.score_name: CURRENT, job.keys.member.label: MEMBER, job.keys.name: UPDATED}
    found = {names[name]: key for name, key in job.keys.scores.items()}
    if again is not None:
        found[RETRAIN] = score_key(job, again)
    return [scored_model(job, name, key) for name, key in found.items()]


def scored_model(job: Job, name: str, key: Key) -> Model:
    """A row of the table from scores in the ledger."""
    meta = job.ledger.manifest(key)["meta"]
    return Model(name, meta["scores"], model_samples(job.ledger, key), meta["dev"])


def table(models: Sequence[Model], groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row per mean (old in-domain, out-of-domain, new domain) and per set of the new domain: each model's score, and
    its difference to the current model with an interval over other queries and texts; scores 0..1."""
    paired = Paired({model.name: model.samples for model in models})
    by_group = {name: [s for s, group in groups.items() if group == name] for name in GROUPS}
    rows = [(GROUPS[name], sets) for name, sets in by_group.items() if sets]
    rows += [(name, [name]) for name in by_group["new"]]
    return [_row(label, sets, models, paired) for label, sets in rows]


def _row(label: str, sets: Sequence[str], models: Sequence[Model], paired: Paired) -> dict[str, Any]:
    weights = {name: 1 / len(sets) for name in sets}
    reference = CURRENT
    cells: dict[str, Any] = {}
    for model in models:
        score = sum(model.scores[name] for name in sets) / len(sets)
        found = paired.interval(Contrast((model.name,), (reference,)), weights) if model.name != reference else None
        cells[model.name] = {"score": score, "to_current": _plain(found)}
    return {"label": label, "sets": len(sets), "models": cells}


def _plain(found: Interval | None) -> list[float] | None:
    return None if found is None else [found.difference, found.low, found.high]


def _dev(models: Sequence[Model]) -> dict[str, dict[str, float]]:
    """Dev losses relative to the base's, mean over datasets, by model and half."""
    base = next(model.dev for model in models if model.name == BASE)
    return {
        model.name: {
            half: sum(model.dev[half][name] / max(loss, 1e-6) for name, loss in base[half].items()) / len(base[half])
            for half in base
            if base[half]
        }
        for model in models
    }


def _bag(job: Job) -> dict[str, Any]:
    """Rows of the new member's bag, by dataset and in all."""
    counts = job.ledger.read_json(job.keys.bags, "counts.json")["datasets"]
    rows = {name: dataset["members"][UPDATE]["in_bag"] for name, dataset in counts.items()}
    return {"rows": sum(rows.values()), "datasets": rows}


def _cpus(job: Job) -> int:
    file = job.ledger.root / "hardware.json"
    return int(json.loads(file.read_text())["cpus"]) if file.is_file() else 1


def _share(bound: Mapping[str, Any]) -> float:
    """The candidate's weight, averaged over groups of tensors."""
    weights = bound["point"]["weights"].values()
    return float(sum(w[1] for w in weights) / len(weights))


def _parts(job: Job, share: float) -> list[float]:
    """What is in the new version of the run's model and of each update's member."""
    before = job.stand.version.update["parts"] if job.stand.version.update else [1.0]
    if job.keys.candidate == job.keys.member:
        return mixed(before, share, [0.0] * len(before) + [1.0])
    added = job.ledger.manifest(job.keys.bags)["meta"]["in_bag"]
    own = len(job.run.ensemble)
    rows = [member.rows for member in job.stand.members]
    return mixed(before, share, [float(n) for n in (sum(rows[:own]), *rows[own:], added)])


def _link(version: Version) -> dict[str, Any]:
    return {"version": version.name, "published": version.key.name, "finished": version.finished}


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """Plain sentences: the new domain, what it did to the old scores, the cost, the drift."""
    rows = {row["label"]: row["models"] for row in summary["table"]}
    lines = [
        f"{group.capitalize()}: {_change(rows[group][UPDATED])} points to the current model."
        for group in GROUPS.values()
        if group in rows
    ]
    new = rows.get(GROUPS["new"])
    if new and RETRAIN in new:
        gain, whole = (new[name]["score"] - new[CURRENT]["score"] for name in (UPDATED, RETRAIN))
        if whole > 0:
            lines.append(f"That is {100 * gain / whole:.0f} % of what a full retrain gains on the new domain.")
        else:
            lines.append("A full retrain gains nothing on the new domain.")
    cost = summary["cost"]
    for name, label in (("retrain", RETRAIN), ("batch_level", "batch-level run")):
        if cost[name]["share"] is not None:
            lines.append(f"It cost {100 * cost[name]['share']:.0f} % of a {label} ({cost[name]['how']}).")
    bound = summary["bound"]
    if bound["limit"] is not None:
        lines.append(f"Drift of old dev texts: {bound['drift']:.4f}, bound {bound['limit']:g}; "
                     f"{100 * bound['step']:.1f} % of the way to the unbounded merge.")  # fmt: skip
    return [*lines, summary["drift"]["verdict"]["text"]]


def _change(cell: Mapping[str, Any]) -> str:
    found = cell["to_current"]
    return "unknown" if found is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in found))
