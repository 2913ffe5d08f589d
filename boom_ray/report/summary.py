"""One plain dict that says what a run did and found, read from the ledger: the input of report, card and tables."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from boom_ray.cluster.node_counts import read_counts
from boom_ray.config import Recipe
from boom_ray.evaluate.samples import Samples
from boom_ray.evaluate.scored import model_samples
from boom_ray.ledger import Key, Ledger
from boom_ray.overlaps import run_marks
from boom_ray.plan import Keys
from boom_ray.records import final_failure, member_seconds
from boom_ray.report.drift import run_drift
from boom_ray.report.intervals import run_intervals
from boom_ray.report.page import write_page
from boom_ray.search.trial_log import TrialLog

_PACKAGES = ("boom_ray", "torch", "ray", "deepspeed", "transformers", "mteb", "optuna")


def write_summary(ledger: Ledger, keys: Keys, recipe: Recipe) -> tuple[dict[str, Any], Path]:
    """Collect the summary and write ``report/summary.json`` and ``report/index.html`` where they changed."""
    summary = collect(ledger, keys, recipe)
    text = json.dumps(summary, indent=1, sort_keys=True) + "\n"
    page = ledger.root / "report" / "index.html"
    written = ledger.root / "report" / "summary.json"
    if not page.is_file() or not written.is_file() or written.read_text(encoding="utf-8") != text:
        ledger.write_text("report/index.html", write_page(summary))
        ledger.write_text("report/summary.json", text)
    return summary, page


def collect(ledger: Ledger, keys: Keys, recipe: Recipe) -> dict[str, Any]:
    """What is known so far; a run that is still under way has fewer models and stages."""
    stages = _stages(ledger, keys)
    members = [_member(ledger, key, i) for i, key in enumerate(keys.members) if ledger.has(key)]
    summary = {
        "name": recipe.name,
        "recipe_yaml": recipe.to_yaml(),
        "created": min((s["started"] for s in stages), default=time.time()),
        "finished": max((s["finished"] for s in stages), default=time.time()),
        "versions": {name: version(name) for name in _PACKAGES},
        "hardware": _hardware(ledger),
        "corpus": _corpus(ledger, keys),
        "members": members,
        "lost": [_lost(ledger, keys, i) for i in keys.lost],
        "sets": _sets(ledger, keys),
        "models": _models(ledger, keys),
        "cosine": _cosine(ledger, keys),
        "search": _search(ledger, keys),
        "stages": stages,
        "nodes": [dataclasses.asdict(sample) for sample in read_counts(ledger)],
        "chosen": f"merge-{recipe.merge.weights}",
        "published": f"published/{keys.published.name}" if ledger.has(keys.published) else None,
        "base_model": recipe.base.model,
        "merge": recipe.merge.model_dump(mode="json"),
        "contamination": {name: dataclasses.asdict(mark) for name, mark in run_marks(ledger, keys).items()},
        "drift": run_drift(ledger.root, keys.published.name),
    }
    return {**summary, "intervals": run_intervals(summary, run_samples(ledger, keys))}


def run_samples(ledger: Ledger, keys: Keys) -> dict[str, dict[str, Samples]]:
    """``{model: {set: samples}}`` of a run's models."""
    return {name: model_samples(ledger, key) for name, key in keys.scores.items() if ledger.has(key)}


def _member(ledger: Ledger, key: Key, index: int) -> dict[str, Any]:
    meta = ledger.manifest(key)["meta"]
    kept = ("ratio", "seed", "steps", "rows", "texts", "tokens", "width", "threads", "started", "finished", "losses")
    return {
        "name": f"member-{index}",
        "identity": key.identity,
        "per_dataset": meta["per_dataset"],
        "device_seconds": member_seconds(meta),
        **{name: meta[name] for name in kept},
        **{name: meta.get(name) for name in ("bag", "accounts", "order", "measured", "datasets")},
    }


def _lost(ledger: Ledger, keys: Keys, index: int) -> dict[str, Any]:
    """A member that the run went on without."""
    failure = final_failure(ledger, keys.members[index])
    reason = str(failure) if failure else "no record of its failure is left"
    return {"name": f"member-{index}", "bag": keys.rules[index].label, "reason": reason}


def _corpus(ledger: Ledger, keys: Keys) -> list[dict[str, Any]]:
    if not ledger.has(keys.corpus):
        return []
    counts = ledger.read_json(keys.corpus, "counts.json")
    bags = ledger.read_json(keys.bags, "counts.json")["datasets"] if ledger.has(keys.bags) else {}
    lengths = ledger.manifest(keys.tokens)["meta"].get("lengths", {}) if ledger.has(keys.tokens) else {}
    rows = []
    for dataset in ledger.read_json(keys.corpus, "datasets.json"):
        name = dataset["name"]
        dev = {half: bags.get(name, {}).get(half, 0) for half in ("dev_a", "dev_b")}
        rows.append({"name": name, "task_type": dataset["task_type"], **counts[name], **dev, **lengths.get(name, {})})
    return rows


def _sets(ledger: Ledger, keys: Keys) -> list[dict[str, Any]]:
    """The evaluation sets as they were when the base was scored."""
    key = keys.scores["base"]
    return ledger.manifest(key)["meta"]["sets"] if ledger.has(key) else []


def _models(ledger: Ledger, keys: Keys) -> list[dict[str, Any]]:
    if not (ledger.has(keys.scores["base"])):
        return []
    base = ledger.manifest(keys.scores["base"])["meta"]["dev"]
    found = []
    for name, score_key in keys.scores.items():
        if not ledger.has(score_key):
            continue
        meta = ledger.manifest(score_key)["meta"]
        merge = ledger.manifest(keys.models[name])["meta"] if name.startswith("merge-") else {}
        relative = {f"dev_{half}": _relative(meta["dev"][half], base[half]) for half in ("a", "b")}
        found.append(
            {
                "name": name,
                "kind": "average" if name in keys.averages else name.split("-")[0],
                "weights": _normalised(merge.get("weights")),
                "scale": merge.get("scale"),
                "method": merge.get("method"),
                "point": merge.get("point"),
                "scores": meta["scores"],
                **relative,
            }
        )
    return found


def _relative(losses: Mapping[str, float], base: Mapping[str, float]) -> float | None:
    ratios = [losses[name] / max(value, 1e-6) for name, value in base.items()]
    return sum(ratios) / len(ratios) if ratios else None


def _normalised(weights: list[float] | None) -> list[float] | None:
    return [w / sum(weights) for w in weights] if weights else None


def _cosine(ledger: Ledger, keys: Keys) -> dict[str, Any]:
    if not ledger.has(keys.grams):
        return {"names": [], "matrix": []}
    from boom_ray.merge.gram import Grams

    matrix = Grams.load(ledger.path(keys.grams) / "grams.npz").cosine()
    names = [f"member-{i}" for i in keys.ensemble]
    return {"names": names, "matrix": [[float(x) for x in row] for row in matrix]}


def _search(ledger: Ledger, keys: Keys) -> dict[str, Any]:
    if not ledger.has(keys.search):
        return {"objective": "", "trials": [], "best": None}
    found = ledger.read_json(keys.search, "search.json")
    trials = TrialLog(ledger.path(keys.search) / "trials.jsonl").replay()
    judged = [t for t in trials if t.rung == max((t.rung for t in trials if t.rung is not None), default=None)]
    shown = [{"number": t.number, "value": t.value} for t in judged]
    return {"objective": found["objective"], "trials": shown, "best": found["best"], "baselines": found["baselines"]}


def _stages(ledger: Ledger, keys: Keys) -> list[dict[str, Any]]:
    """Every artifact's time, from its manifest; members by their own clock, without Ray's start-up."""
    named: list[tuple[str, str, Key]] = [
        ("corpus", "corpus", keys.corpus),
        *([("corpus", "mine", keys.mined)] if keys.mined != keys.corpus else []),
        ("base", "start", keys.start),
        ("corpus", "tokens", keys.tokens),
        ("corpus", "bags", keys.bags),
        *([("base", "warm base", keys.base)] if keys.base != keys.start else []),
        *(("members", f"member-{i}", key) for i, key in enumerate(keys.members)),
        ("search", "gram", keys.grams),
        ("search", "search", keys.search),
        *(("merge", f"merge-{name}", key) for name, key in keys.merges.items()),
        *(("score", f"score {name}", key) for name, key in keys.scores.items()),
        ("publish", "publish", keys.published),
    ]
    cpus = _hardware(ledger)["cpus"]
    return [_timed(stage, label, ledger.manifest(key), cpus) for stage, label, key in named if ledger.has(key)]


def _timed(stage: str, label: str, manifest: Mapping[str, Any], cpus: int) -> dict[str, Any]:
    meta = manifest["meta"]
    started, finished = meta.get("started", manifest["started"]), meta.get("finished", manifest["finished"])
    devices = meta.get("devices", meta.get("width", 1))
    devices = cpus if devices == "all" else devices
    seconds = (finished - started - meta.get("idle", 0.0)) * devices
    return {"name": stage, "label": label, "started": started, "finished": finished, "device_seconds": seconds}


def _hardware(ledger: Ledger) -> dict[str, Any]:
    """What the last run that did something ran on."""
    file = ledger.root / "hardware.json"
    return json.loads(file.read_text()) if file.is_file() else {"cpus": 0, "gpus": 0, "memory_gib": 0.0}
