"""A study that looks like a real one, with gaps that are known: deterministic, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np

from boom_ray.config.study import Condition
from boom_ray.evaluate.compare import Scored, Task
from boom_ray.evaluate.samples import Samples
from boom_ray.study.results import ConditionResult, SeedResult, StudyResult

FIVE = (0.2, 0.4, 0.6, 0.8, 1.0)
TYPES = ("retrieval", "classification", "sts", "clustering", "reranking")


@dataclass(frozen=True)
class Made:
    """A condition: its gain over the single run in-domain and out-of-domain, scores in 0..1."""

    name: str
    role: str
    passes: float
    gain: tuple[float, float]
    ratios: tuple[float, ...] = (1.0,)
    title: str = ""
    exploratory: bool = False
    searched: bool = False
    seeds: int = 0  # finished ones; 0: all that are wanted
    units: bool = True  # what the scores were made from was kept


GRID = (
    Made("bls-1.0", "reference", 1.0, (0, 0), title="BLS 1.0"),
    Made("bls-1.8", "reference", 1.8, (0.006, -0.001), title="BLS 1.8"),
    Made("bls-3.0", "reference", 3.0, (0.009, -0.004), title="BLS 3.0"),
    Made("bags-20-100", "merge", 3.0, (0.012, 0.009), FIVE, title="{20..100}"),
    Made("bags-80-100", "merge", 1.8, (0.009, 0.006), (0.8, 1.0), title="{80, 100}"),
    Made("bags-60x3", "merge", 1.8, (0.004, 0.007), (0.6, 0.6, 0.6), title="{60, 60, 60}"),
    Made("bags-searched", "merge", 3.0, (0.014, 0.008), FIVE, title="{20..100}, searched", searched=True),
    Made("bags-scale-1.2", "merge", 3.0, (0.013, 0.007), FIVE, title="{20..100}, scale 1.2"),
    Made("soup", "control", 3.0, (0.010, 0.004), (1.0, 1.0, 1.0), title="soup of 3 seeds"),
    Made("ema", "control", 1.0, (0.001, 0.002), title="EMA of BLS 1.0"),
    Made("wise-0.5", "control", 1.0, (-0.012, 0.006), title="WiSE-FT 0.5"),
    Made("wise-0.8", "control", 1.0, (-0.004, 0.004), title="WiSE-FT 0.8"),
    Made("half-and-rest", "merge", 1.0, (0.001, 0.011), (0.5, 0.5), title="{50} + rest", exploratory=True),
    Made("task-sequential", "control", 1.0, (-0.015, -0.010), title="task-sequential", exploratory=True),
)
BASE_GAIN = (-0.055, -0.012)


def made_tasks(inside: int = 19, outside: int = 11) -> tuple[Task, ...]:
    kinds = [("in_domain", "id")] * inside + [("out_of_domain", "ood")] * outside
    return tuple(Task(f"{short}_{TYPES[n % 5]}_{n}", TYPES[n % 5], domain) for n, (domain, short) in enumerate(kinds))


def made_study(
    grid: Sequence[Made] = GRID, seeds: int = 3, tasks: Sequence[Task] = made_tasks(), **how: Any
) -> StudyResult:
    """A study of ``grid``; ``how`` may say ``units`` of a set and ``noise`` of a unit."""
    wanted = {made.name: 1 if made.exploratory else seeds for made in grid}
    found = [_condition(made, wanted[made.name], tasks, how) for made in grid]
    pending = [f"{f.condition.name} (seed {s})" for f in found for s in range(len(f.seeds), f.wanted)]
    return StudyResult(
        name="study-made",
        base=_scored("base", BASE_GAIN, tasks, how),
        base_model="all-MiniLM-L6-v2, 3 layers",
        tasks=tuple(tasks),
        rows=12_480,
        cap={"default": 250},
        conditions=tuple(found),
        pending=tuple(pending),
        command="boom-ray study jobs/recipes/study.yaml --seeds 3",
    )


def _condition(made: Made, wanted: int, tasks: Sequence[Task], how: dict[str, Any]) -> ConditionResult:
    condition = Condition(name=made.name, title=made.title, role=made.role, exploratory=made.exploratory)
    seeds = tuple(_seed(made, seed, tasks, how) for seed in range(made.seeds or wanted))
    return ConditionResult(condition, seeds, wanted)


def _seed(made: Made, seed: int, tasks: Sequence[Task], how: dict[str, Any]) -> SeedResult:
    rng = np.random.default_rng([crc32(made.name.encode()), seed])
    members, scored = len(made.ratios), _scored(f"{made.name}-s{seed}", made.gain, tasks, how)
    apart = np.triu(0.45 + 0.25 * rng.random((members, members)), 1)
    angles = np.eye(members) + apart + apart.T
    weights = tuple(ratio * (0.5 + rng.random()) for ratio in made.ratios)
    scale = 0.9 + 0.4 * rng.random()
    found = {"value": 0.91 - 0.01 * rng.random(), "trials": 16, "weights": list(weights), "scale": scale}
    return SeedResult(
        seed=seed,
        scored=scored if made.units else replace(scored, samples={}),
        passes=made.passes,
        device_seconds=410.0 * made.passes * (1 + 0.05 * rng.random()),
        ratios=made.ratios,
        weights=(weights if made.searched else made.ratios) if members > 1 else (),
        scale=scale if made.searched else 1.0,
        cosine=tuple(map(tuple, angles.tolist())) if members > 1 else (),
        found=found if made.searched else None,
        trained=frozenset({f"{made.name}-{seed}"}),
    )


def _scored(name: str, gain: tuple[float, float], tasks: Sequence[Task], how: dict[str, Any]) -> Scored:
    """Units of a set are as hard for every model; a model's own luck with each is ``noise``."""
    samples = {}
    for number, task in enumerate(tasks):
        own = np.random.default_rng([crc32(name.encode()), number])
        hard = np.random.default_rng(number).uniform(0.2, 0.8, how.get("units", 120))
        values = hard + gain[task.domain == "out_of_domain"] + own.normal(0, how.get("noise", 0.06), len(hard))
        samples[task.name] = Samples("mean", task.name, values)
    return Scored(name, {task: s.score() for task, s in samples.items()}, samples)
