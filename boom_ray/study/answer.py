"""What a study says: every condition against batch-level shuffling at equal compute, and whether the goals are met.

Pure. All intervals are of :mod:`boom_ray.evaluate.significance`: paired over the units of each set and, for a side of
several seeds, over other training seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boom_ray.evaluate.compare import Scored, Task
from boom_ray.evaluate.means import even
from boom_ray.evaluate.significance import Bootstrap, Contrast, Interval, Paired, Samples, over_tasks
from boom_ray.study.goals import Gap, Goal, Line, judged

if TYPE_CHECKING:
    from boom_ray.study.results import ConditionResult, StudyResult

DOMAINS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain"}
ENOUGH = 0.98  # of a condition's passes: a reference that has fewer is no equal compute
_BASE = "the base"  # no condition can be called so


@dataclass(frozen=True)
class Answer:
    """What the report tells.

    Attributes:
        tasks: that every model has a score on, in-domain first.
        means: ``{mean: weight of each task}``: the domains, then the task types where there are several.
        base: the model that all members start from; nothing but its gaps to the single run is known of it.
        lines: of the conditions, those that are not exploratory first.
        single: name of the reference that is nearest to one pass over the corpus; None where none is finished.
        goals: with verdicts.
        beside: of the merge that is closest to the goals, its gaps to every control: ``{control: {domain: gap}}``.
        intervals: how many the tables and figures show.
    """

    tasks: tuple[Task, ...]
    means: Mapping[str, Mapping[str, float]]
    base: Line
    lines: tuple[Line, ...]
    single: str | None
    goals: tuple[Goal, ...]
    beside: Mapping[str, Mapping[str, Gap]]
    intervals: int

    def line(self, name: str | None) -> Line | None:
        """The line of a condition."""
        return next((line for line in self.lines if line.name == name), None)

    @property
    def leading(self) -> Line | None:
        """The merge that is closest to the goals, of those that may decide one."""
        return self.goals[0].attempts[0].line if self.goals[0].attempts else None


def answer(result: StudyResult, how: Bootstrap | None = None) -> Answer:
    """Every condition's means and gaps, and the goals' verdicts.

    Raises:
        BoomError: two models were scored on different texts of a set.
    """
    models = _Models(result, how)
    passes = {c.condition.name: _mean([s.passes for s in c.seeds]) for c in result.conditions}
    every = {c.condition.name: passes[c.condition.name] for c in result.conditions if c.condition.role == "reference"}
    tried = {c.condition.name for c in result.conditions if c.condition.exploratory}
    references = {name: its for name, its in every.items() if name not in tried}
    single = min(references, key=lambda name: abs(references[name] - 1.0), default=None)
    ordered = sorted(result.conditions, key=lambda c: c.condition.exploratory)  # stable: else the recipe's order
    beyond = tried - every.keys()  # what may be compared with an exploratory reference, too
    lines = tuple(_line(c, models, every if c.condition.name in beyond else references, single) for c in ordered)
    goals = judged(lines, None if single is None else references[single] / ENOUGH)
    leading = goals[0].attempts[0].line.name if goals[0].attempts else None
    controls = [line.name for line in lines if line.role == "control" and not line.exploratory]
    beside = {name: models.gaps(leading, name, models.domains) for name in controls} if leading else {}
    return Answer(
        tasks=models.tasks,
        means=models.means,
        base=_base_line(result.base_model, models, single),
        lines=lines,
        single=single,
        goals=goals,
        beside=beside,
        intervals=_count(lines, single, beside),
    )


def peer_of(name: str, passes: float, references: Mapping[str, float]) -> str | None:
    """The reference at equal compute: the cheapest that has at least 98 % of the passes; else the longest there is.

    Args:
        references: ``{name: passes}``.

    Returns:
        None for a reference itself, and where there is none.
    """
    if name in references:
        return None
    enough = [other for other, its in references.items() if its >= ENOUGH * passes]
    if enough:
        return min(enough, key=lambda other: references[other])
    return max(references, key=lambda other: references[other], default=None)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _line(found: ConditionResult, models: _Models, references: Mapping[str, float], single: str | None) -> Line:
    condition, passes = found.condition, _mean([s.passes for s in found.seeds])
    peer = peer_of(condition.name, passes, references)
    others = single is not None and single != condition.name
    return Line(
        name=condition.name,
        title=condition.shown,
        role=condition.role,
        exploratory=condition.exploratory,
        seeds=len(found.seeds),
        wanted=found.wanted,
        passes=passes,
        device_seconds=_mean([s.device_seconds for s in found.seeds]),
        scores=models.scores(condition.name, models.means),
        by_task=models.scores(condition.name, models.singles),
        peer=peer,
        short=peer is not None and references[peer] < ENOUGH * passes,
        to_peer=models.gaps(condition.name, peer, models.means) if peer else {},
        to_single=models.gaps(condition.name, single, models.domains) if others and single else {},
        task_gaps=models.gaps(condition.name, single, models.singles) if others and single else {},
        over_tasks=models.over_tasks(condition.name, peer) if peer else {},
    )


def _base_line(title: str, models: _Models, single: str | None) -> Line:
    gaps = models.gaps(_BASE, single, models.domains) if single else {}
    return Line(
        name=_BASE,
        title=title,
        role="base",
        exploratory=False,
        seeds=1,
        wanted=1,
        passes=0.0,
        device_seconds=0.0,
        scores=models.scores(_BASE, models.means),
        by_task=models.scores(_BASE, models.singles),
        to_single=gaps,
    )


def _count(lines: Sequence[Line], single: str | None, beside: Mapping[str, Mapping[str, Gap]]) -> int:
    """Intervals between two conditions; one that stands in two tables counts once."""
    shown = {(line.name, line.peer, key) for line in lines for key, gap in line.to_peer.items() if gap.interval}
    for line in lines:
        shown |= {(line.name, single, key) for key, gap in line.to_single.items() if gap.interval}
        shown |= {(line.name, single, f"task {key}") for key, gap in line.task_gaps.items() if gap.interval}
    return len(shown) + sum(gap.interval is not None for gaps in beside.values() for gap in gaps.values())


class _Models:
    """All models of a study, and how far two conditions are apart."""

    def __init__(self, result: StudyResult, how: Bootstrap | None) -> None:
        sides = {_BASE: [result.base], **{c.condition.name: [s.scored for s in c.seeds] for c in result.conditions}}
        models = {f"{name} {number}": m for name, side in sides.items() for number, m in enumerate(side)}
        shared = [task for task in result.tasks if all(task.name in model.scores for model in models.values())]
        self.tasks = tuple(sorted(shared, key=lambda t: (t.domain != "in_domain", t.task_type, t.name)))
        self.means = _means(self.tasks)
        self.domains = {mean: weights for mean, weights in self.means.items() if mean in DOMAINS}
        self.singles = {task.name: {task.name: 1.0} for task in self.tasks}
        trained = {c.condition.name: [s.trained for s in c.seeds] for c in result.conditions}
        self._trained: dict[str, list[frozenset[str]]] = {_BASE: [], **trained}
        self._keys = {name: tuple(f"{name} {number}" for number in range(len(side))) for name, side in sides.items()}
        self._scores = {key: model.scores for key, model in models.items()}
        self._paired = Paired(_complete(models, [task.name for task in self.tasks]), how)

    def scores(self, name: str, means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Of a condition, the mean over its seeds."""
        return {key: self._score(name, weights) for key, weights in means.items()}

    def gaps(self, first: str, second: str, means: Mapping[str, Mapping[str, float]]) -> dict[str, Gap]:
        """``first`` minus ``second``, conditions, of ``{mean: weight of each task}``."""
        contrast = self._contrast(first, second)
        one, other = self.scores(first, means), self.scores(second, means)
        return {key: Gap(one[key] - other[key], self._paired.interval(contrast, means[key])) for key in means}

    def over_tasks(self, first: str, second: str) -> dict[str, Interval | None]:
        """The same of the domains' means, over other tasks like these; None for fewer than three tasks."""
        contrast, level = self._contrast(first, second), self._paired.how.level
        return {
            domain: over_tasks(self._scores, contrast, list(tasks), level) if len(tasks) >= 3 else None
            for domain, tasks in self.domains.items()
        }

    def _contrast(self, first: str, second: str) -> Contrast:
        """Of conditions that share members seed by seed, the difference of each seed; else each side by itself."""
        one, other = self._trained[first], self._trained[second]
        shared = len(one) == len(other) and all(a & b for a, b in zip(one, other, strict=True))
        return Contrast(self._keys[first], self._keys[second], seeds=True, paired=shared)

    def _score(self, name: str, weights: Mapping[str, float]) -> float:
        models = [self._scores[key] for key in self._keys[name]]
        return _mean([math.fsum(w * scores[task] for task, w in weights.items()) for scores in models])


def _means(tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    types = sorted({task.task_type for task in tasks})
    groups = {domain: [task.name for task in tasks if task.domain == domain] for domain in DOMAINS}
    if len(types) > 1:
        groups |= {kind: [task.name for task in tasks if task.task_type == kind] for kind in types}
    return {key: even(names) for key, names in groups.items() if names}


def _complete(models: Mapping[str, Scored], tasks: Sequence[str]) -> dict[str, dict[str, Samples]]:
    """Samples of the models that have those which most have: one without would take the intervals from all."""
    known = {
        key: {name: model.samples[name] for name in tasks if name in model.samples and model.samples[name].known}
        for key, model in models.items()
    }
    usual = Counter(frozenset(found) for found in known.values()).most_common(1)[0][0]
    return {key: {name: found[name] for name in usual} for key, found in known.items() if usual <= set(found)}
