"""Searches that are made up: their logs as a search leaves them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from boom_ray.search.points import Point
from boom_ray.search.trial_log import Trial, TrialLog

MEMBERS, RATIOS = ["member-0", "member-1", "member-2"], [0.2, 0.4, 1.0]


def weight_search(folder: Path, count: int = 40, seed: int = 3, rungs: bool = False, **result: Any) -> Path:
    """A search whose value is (scale - 1.1)^2 and a little of the first weight; every seventh trial failed."""
    rng, log = random.Random(seed), TrialLog(folder / "trials.jsonl")
    for number in range(count):
        raw = [rng.random() for _ in MEMBERS]
        weights = tuple(w / sum(raw) for w in raw)
        point = Point("linear", {"all": weights}, rng.uniform(0.7, 1.4))
        value = (point.scale - 1.1) ** 2 + 0.01 * weights[0]
        for rung in (0, 1) if rungs and number % 3 == 0 else (0,):
            told = None if number % 7 == 6 else value - rung
            log.append(
                Trial(number, "tpe", point, {}, told, {"ask": value}, rung if rungs else None, 50, {"total": 2.0}, "1")
            )
    found = {"searcher": "tpe", "members": MEMBERS, "ratios": RATIOS, "objective": "loss, lower is better", **result}
    (folder / "search.json").write_text(json.dumps(found))
    return folder


def ratio_search(folder: Path) -> Path:
    """Nine sets at the lowest rung, three at the next, one at the end."""
    log, rng = TrialLog(folder / "ratio_trials.jsonl"), random.Random(5)
    sets = [rng.sample([0.2, 0.4, 0.6, 0.8, 1.0], rng.randint(2, 5)) for _ in range(9)]
    for number, ratios in enumerate(sets):
        for rung in range(3 if number == 4 else 2 if number in (1, 2) else 1):
            parameters = {"ratios": sorted(ratios), "numbers": [], "steps": [], "weights": "ratio"}
            log.append(Trial(number, "asha", None, parameters, 1 - 0.1 * rung - (0.6 in ratios) / 10, rung=rung))
    trainings = [{"device_seconds": 30.0}, {"device_seconds": 12.5}]
    (folder / "search.json").write_text(json.dumps({"searcher": "asha", "trainings": trainings}))
    return folder
