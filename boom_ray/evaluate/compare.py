"""Models side by side on the same tasks: scores, differences to the first with intervals, and means.

The means are the leaderboard's: over tasks, over task types (the mean of each type's mean), and over the tasks of each
domain and benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from boom_ray.config import BoomError
from boom_ray.evaluate.means import LOCAL, even, over_types
from boom_ray.evaluate.samples import Samples
from boom_ray.evaluate.sets import EvalSet
from boom_ray.evaluate.significance import Bootstrap, Contrast, Interval, Paired, over_tasks

RowKind = Literal["task", "type", "domain", "benchmark", "types", "mean"]
_DOMAINS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain"}


@dataclass(frozen=True)
class Task:
    """What is known of a task beside its scores: empty where nothing is."""

    name: str
    task_type: str = ""
    domain: str = ""
    metric: str = ""
    benchmark: str = ""

    @classmethod
    def of(cls, entry: EvalSet) -> Task:
        return cls(entry.name, entry.task_type, entry.domain, entry.metric, entry.benchmark)


@dataclass(frozen=True)
class Scored:
    """A model's main scores, 0..1, and what they were made from, where that was kept."""

    name: str
    scores: Mapping[str, float]
    samples: Mapping[str, Samples]


@dataclass(frozen=True)
class Row:
    """A task or a mean over tasks.

    ``scores``: one per side, the mean over its seeds. For every side but the first, its difference to the first:
    ``differences`` with an interval over other units (and seeds), None where the units are not known; ``over_tasks``
    with an interval over other tasks, None for fewer than three tasks.
    """

    label: str
    kind: RowKind
    tasks: tuple[str, ...]
    scores: tuple[float, ...]
    differences: tuple[Interval | None, ...]
    over_tasks: tuple[Interval | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Sides are single models, or several seeds of one method. ``left_out``: tasks that not every model has;
    ``touched``: footnotes of the tasks whose test texts a model is known to be trained on."""

    sides: tuple[str, ...]
    seeds: tuple[int, ...]
    tasks: tuple[Task, ...]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    touched: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def overall(self) -> Row:
        """The mean over all tasks; of a single task, the task."""
        return next((row for row in self.rows if row.kind == "mean"), self.rows[0])


def compare(sides: Mapping[str, Sequence[Scored]], tasks: Iterable[Task], how: Bootstrap | None = None) -> Comparison:
    """Compare sides on the tasks that all of their models have scores on.

    Args:
        sides: ``{name: models}``, the reference first; several models of a side are training seeds of one method.
        tasks: what the scores are of; a task that is only known to some models is left out.

    Raises:
        BoomError: fewer than two sides, no task in common, or scores taken on different texts.
    """
    if len(sides) < 2:
        raise BoomError("a comparison needs at least two models.")
    known = {task.name: task for task in tasks}
    models = {f"{number}.{seed}": m for number, side in enumerate(sides.values()) for seed, m in enumerate(side)}
    common = [name for name in known if all(name in model.scores for model in models.values())]
    if not common:
        names = ", ".join(model.name for model in models.values())
        raise BoomError(f"{names} have no task in common. Score them on the same sets: give --sets or --benchmark.")
    shown = sorted((known[name] for name in common), key=lambda t: (t.domain != "in_domain", t.task_type, t.name))
    paired = Paired({key: {n: m.samples[n] for n in common if n in m.samples} for key, m in models.items()}, how)
    scores = {key: model.scores for key, model in models.items()}
    keys = [tuple(k for k in models if k.startswith(f"{number}.")) for number in range(len(sides))]
    singles: list[tuple[str, RowKind, dict[str, float]]] = [(task.name, "task", {task.name: 1.0}) for task in shown]
    rows = tuple(_row(label, kind, weights, scores, keys, paired) for label, kind, weights in singles + means(shown))
    seeds = tuple(len(side) for side in sides.values())
    return Comparison(tuple(sides), seeds, tuple(shown), rows, tuple(n for n in known if n not in common))


def means(tasks: Sequence[Task]) -> list[tuple[str, RowKind, dict[str, float]]]:
    """(label, kind, weight of each task) of the rows below the tasks: types, domains, benchmarks, all."""
    rows: list[tuple[str, RowKind, dict[str, float]]] = []
    if len(tasks) < 2:
        return rows
    types = _groups(tasks, [task.task_type for task in tasks])
    several = [(name, names) for name, names in sorted(types.items()) if 1 < len(names) < len(tasks)]
    rows += [(name, "type", even(names)) for name, names in several]
    domains = _groups(tasks, [_DOMAINS.get(task.domain, "") for task in tasks])
    rows += [(name, "domain", even(names)) for name, names in domains.items()] if len(domains) > 1 else []
    benchmarks = _groups(tasks, [task.benchmark or LOCAL for task in tasks])
    for name, names in benchmarks.items() if len(benchmarks) > 1 else ():
        rows += _both([task for task in tasks if task.name in names], f" of {name}", "benchmark")
    return rows + _both(tasks, "", "mean")


def _both(tasks: Sequence[Task], of: str, kind: RowKind) -> list[tuple[str, RowKind, dict[str, float]]]:
    """Means over types and over tasks, as the leaderboard has them for each benchmark."""
    types = _groups(tasks, [task.task_type for task in tasks])
    each = over_types({task.name: task.task_type for task in tasks})
    above: list[tuple[str, RowKind, dict[str, float]]] = [(f"mean over types{of}", "types", each)]
    return (above if len(types) > 1 else []) + [(f"mean over tasks{of}", kind, even([t.name for t in tasks]))]


def _groups(tasks: Sequence[Task], keys: Sequence[str]) -> dict[str, list[str]]:
    """Names of the tasks by key, in the order of the tasks; nothing where a key is not known."""
    groups: dict[str, list[str]] = {}
    for task, key in zip(tasks, keys, strict=True):
        groups.setdefault(key, []).append(task.name)
    return groups if "" not in groups else {}


def _row(
    label: str,
    kind: RowKind,
    weights: Mapping[str, float],
    scores: Mapping[str, Mapping[str, float]],
    sides: Sequence[tuple[str, ...]],
    paired: Paired,
) -> Row:
    def mean(side: Sequence[str]) -> float:
        return math.fsum(w * scores[model][task] for model in side for task, w in weights.items()) / len(side)

    contrasts = [Contrast(side, sides[0], seeds=True) for side in sides[1:]]
    wide = len(weights) >= 3 and kind != "types"
    others = [over_tasks(scores, c, list(weights), paired.how.level) if wide else None for c in contrasts]
    units = [paired.interval(c, weights) for c in contrasts]
    return Row(label, kind, tuple(weights), tuple(mean(side) for side in sides), tuple(units), tuple(others))
