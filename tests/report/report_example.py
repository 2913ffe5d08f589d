"""A summary that looks like a real run's: deterministic, no randomness beyond a seeded generator."""

from __future__ import annotations

import math
import random
from typing import Any

START = 1_790_000_000.0
RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
DATASETS = [
    ("python_functions", "retrieval", 7412),
    ("python_modules", "clustering", 3120),
    ("python_packages", "classification", 2874),
]
SETS = [
    ("python_functions", "retrieval", "in_domain", "ndcg_at_10", 0.291, 0.071),
    ("python_modules", "clustering", "in_domain", "v_measure", 0.412, 0.038),
    ("python_packages", "classification", "in_domain", "accuracy", 0.548, 0.061),
    ("python_functions_ood", "retrieval", "out_of_domain", "ndcg_at_10", 0.334, 0.052),
    ("python_modules_ood", "clustering", "out_of_domain", "v_measure", 0.437, 0.021),
]
RECIPE = """name: quickstart
seed: 17
base:
  model: null
  build:
    layers: 3
    hidden: 128
    heads: 4
    vocab: 8000
  pooling: mean
  max_tokens: 128
corpus:
  datasets:
  - source: python_environment
    max_functions: 12000
bags:
  ratios: [0.2, 0.4, 0.6, 0.8, 1.0]
merge:
  method: multislerp
  task_vectors: false
  weights: searched
"""


def example(ratios: tuple[float, ...] = RATIOS, ood: bool = True) -> dict[str, Any]:
    """A finished run with one member per ratio; every member trained two at a time after base and corpus."""
    rng = random.Random(17)
    members = [_member(i, ratio, rng) for i, ratio in enumerate(ratios)]
    sets = [s for s in SETS if ood or s[2] == "in_domain"]
    return {
        "name": "quickstart",
        "recipe_yaml": RECIPE,
        "created": START,
        "finished": members[-1]["finished"] + 96,
        "versions": {
            "python": "3.11.9",
            "torch": "2.13.0",
            "ray": "2.60.0",
            "transformers": "5.23.0",
            "mteb": "2.26.24",
        },
        "hardware": {"cpus": 2, "gpus": 0, "memory_gib": 7.7},
        "corpus": [_dataset(*row) for row in DATASETS],
        "members": members,
        "sets": [
            {"name": n, "task_type": t, "domain": d, "metric": m, "language": "python-Code"}
            for n, t, d, m, _, _ in sets
        ],
        "models": _models(members, sets),
        "cosine": _cosine(ratios),
        "search": _search(len(ratios), rng),
        "stages": _stages(members),
        "nodes": [
            {"at": START + at, "cpu_nodes": cpu, "gpu_nodes": gpu, "begins": at == 0}
            for at, cpu, gpu in ((0, 0, 0), (20, 4, 0), (90, 4, 2), (150, 0, 2), (400, 1, 0), (480, 0, 0), (500, 0, 0))
        ],
        "chosen": "merge-searched",
        "published": "published/quickstart-3f9a61c2b7d40e18",
    }


def with_intervals(summary: dict[str, Any], half: float) -> dict[str, Any]:
    """The summary with intervals of plus and minus ``half`` (0..1) on every difference that it can have."""
    from boom_ray.report.intervals import REFERENCES, means_of

    names = [m["name"] for m in summary["models"]]
    means, sets = list(means_of(summary["sets"])), [s["name"] for s in summary["sets"]]

    def every(keys: list[str]) -> dict[str, dict[str, dict[str, list[float]]]]:
        return {r: {name: {key: [0.0, -half, half] for key in keys} for name in names} for r in REFERENCES}

    return {**summary, "intervals": {"means": every(means), "sets": every(sets)}}


def _dataset(name: str, task_type: str, rows: int) -> dict[str, Any]:
    dropped = {"rejected": 3, "duplicates": rows // 40, "decontaminated": rows // 500, "capped": 0}
    held = max(50, rows // 50)
    halves = {"dev_a": held // 2, "dev_b": held - held // 2}
    return {
        "name": name,
        "task_type": task_type,
        "rows_in": rows + sum(dropped.values()),
        **dropped,
        "rows": rows,
        **halves,
        "tokens": rows * 140,
        "longest": 900,
        "histogram": [[64, rows // 5], [128, rows // 2], [512, rows - rows // 5 - rows // 2 - 3], [1024, 3]],
    }


def _member(index: int, ratio: float, rng: random.Random) -> dict[str, Any]:
    steps = round(140 * ratio)
    lane = [0.0, 0.0]
    for share in RATIOS[: index + 1]:
        start = min(lane)
        lane[lane.index(start)] = start + 12 + 150 * share
    begin = START + 78 + start
    seconds = 12 + 150 * ratio
    curve = [[s, 2.75 * math.exp(-s / 30) + 1.35 - 0.25 * s / 140 + rng.gauss(0, 0.09)] for s in range(1, steps + 1)]
    return {
        "name": f"member-{index}",
        "identity": f"{0x5A17C3D9E0B1 + 7919 * index:016x}",
        "ratio": ratio,
        "seed": 1000 + index,
        "rows": round(13406 * ratio),
        "steps": steps,
        "width": 1,
        "threads": 1,
        "started": begin,
        "finished": begin + seconds,
        "device_seconds": seconds,
        "texts": round(13406 * ratio * 4.4),
        "tokens": round(13406 * ratio * 4.4 * 61),
        "per_dataset": {name: round(rows * ratio) for name, _, rows in DATASETS},
        "losses": curve,
        "bag": f"{100 * ratio:.3g} %",
        "accounts": {name: _account(rows, ratio) for name, _, rows in DATASETS},
        "measured": _measured(seconds / steps),
        "datasets": {
            name: {"steps": len(curve[place::3]), "rows": round(rows * ratio), "losses": curve[place::3]}
            for place, (name, _, rows) in enumerate(DATASETS)
        },
    }


def _measured(step_seconds: float) -> dict[str, float | None]:
    return {
        "step_seconds": step_seconds,
        "texts_per_second": 61.25,
        "tokens_per_second": 3512.0,
        "padding_share": 0.031,
        "stall_share": 0.0042,
        "flops_per_second": 41.5e9,
        "mfu": None,
        "grad_norm": 0.875,
        "memory": 3 * 2**29,
    }


def _account(rows: int, ratio: float) -> dict[str, int]:
    removed = {"rejected": 3, "duplicates": rows // 40, "near_duplicates": 0, "decontaminated": rows // 500}
    removed["capped"] = 0
    dev = max(50, rows // 50)
    inside = round(ratio * (rows - dev))
    places = {"used": inside - 1, "tail": 1, "cut": 0, "dev": dev, "out_of_bag": rows - dev - inside, **removed}
    return {"rows_in": sum(places.values()), **places}


def _models(members: list[dict[str, Any]], sets: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    ratios = [m["ratio"] for m in members]
    count = len(members)

    def model(name: str, kind: str, gain: float, dev: float, **extra: Any) -> dict[str, Any]:
        scores = {s[0]: round(s[4] + gain * s[5] * (1.0 if s[2] == "in_domain" else 1.4 - 0.5 * gain), 4) for s in sets}
        return {
            "name": name,
            "kind": kind,
            "weights": None,
            "scale": None,
            "scores": scores,
            "dev_a": dev - 0.004,
            "dev_b": dev,
            **extra,
        }

    found = [model("base", "base", 0.0, 1.0)]
    for m in members:
        gain = 0.55 + 0.5 * m["ratio"] ** 0.7
        found.append(model(m["name"], "member", gain, 1 - 0.16 * gain))
    tilted = [0.4 + r * r for r in ratios]
    merges = [
        ("merge-ratio", 0.99, [r / sum(ratios) for r in ratios], 1.0),
        ("merge-uniform", 0.93, [1 / count] * count, 1.0),
    ]
    merges.append(("merge-searched", 1.09, [w / sum(tilted) for w in tilted], 1.17))
    found += [model(n, "merge", gain, 1 - 0.17 * gain, weights=w, scale=s) for n, gain, w, s in merges]
    return found


def _cosine(ratios: tuple[float, ...]) -> dict[str, Any]:
    matrix = [[1.0 if i == j else 0.35 + 0.4 * min(a, b) for j, b in enumerate(ratios)] for i, a in enumerate(ratios)]
    return {"names": [f"member-{i}" for i in range(len(ratios))], "matrix": matrix}


def _search(count: int, rng: random.Random) -> dict[str, Any]:
    trials = []
    for number in range(24):
        raw = [rng.random() for _ in range(count)]
        value = 0.842 + 0.06 * rng.random() * math.exp(-number / 9)
        weights = [w / sum(raw) for w in raw]
        trials.append(
            {"number": number, "weights": weights, "scale": 0.7 + 0.7 * rng.random(), "value": value, "seconds": 2.1}
        )
    best = min(trials, key=lambda t: t["value"])["number"]
    objective = "training loss on dev half A, relative to the base, mean over datasets (lower is better)"
    return {"objective": objective, "trials": trials, "best": best}


def _stages(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the ledger tells them: every artifact with its stage; base and corpus interleave."""
    end = max(m["finished"] for m in members) - START
    spans = [
        ("corpus", "corpus", 0, 27, 50),
        ("base", "start", 27, 29, 2),
        ("corpus", "tokens", 29, 36, 14),
        ("base", "warm base", 36, 78, 84),
        *(("members", m["name"], m["started"] - START, m["finished"] - START, m["device_seconds"]) for m in members),
        ("search", "gram", end, end + 2, 2),
        ("search", "search", end + 2, end + 28, 52),
        *(("merge", f"merge-{n}", end + 28 + k / 2, end + 28.5 + k / 2, 0.5) for k, n in enumerate("abc")),
        *(("score", f"score {k}", end + 30 + 8 * k, end + 38 + 8 * k, 15) for k in range(8)),
        ("publish", "publish", end + 94, end + 96, 2),
    ]
    return [
        {"name": n, "label": label, "started": START + a, "finished": START + b, "device_seconds": d}
        for n, label, a, b, d in spans
    ]
