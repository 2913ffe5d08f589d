"""A study as tables and plain sentences, the same for the page and for markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from boom_ray.report.intervals import format_difference
from boom_ray.report.layout import percent
from boom_ray.study.answer import DOMAINS, Answer
from boom_ray.study.goals import TARGETS, Attempt, Gap, Line

if TYPE_CHECKING:
    from boom_ray.study.results import ConditionResult, SeedResult, StudyResult

Cell = str | Gap | None
_DOMAINS = {"in_domain": "ID", "out_of_domain": "OOD"}
SHORT = "†"  # after a reference that took less compute than what stands against it


@dataclass(frozen=True)
class Table:
    """``groups``: (words, columns that they stand above), or nothing; the first ``text`` columns are words. A ``brief``
    table leaves out the intervals."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    groups: Sequence[tuple[str, int]] = ()
    text: int = 1
    note: str = ""
    brief: bool = False

    def shown(self, cell: Cell) -> str:
        """A cell as plain text."""
        if isinstance(cell, Gap):
            return format_difference(100 * cell.value, None) if self.brief else format_gap(cell)
        return "-" if cell is None else cell


def format_gap(gap: Gap | None) -> str:
    """In points, with half its interval: ``+0.42 ±0.31``; ``+0.42 ±?`` where that is not known."""
    if gap is None:
        return "-"
    if gap.interval is None:
        return f"{format_difference(100 * gap.value, None)} ±?"
    return format_difference(100 * gap.value, 50 * (gap.interval.high - gap.interval.low))


def title_of(answer: Answer, name: str | None) -> str:
    """What people call a condition."""
    line = answer.line(name)
    return line.title if line else "-"


def answer_table(answer: Answer) -> Table:
    """The means of every condition, its cost, and its gaps to equal compute and to the single run."""
    domains = [domain for domain in DOMAINS if domain in answer.means]
    names = [DOMAINS[domain] for domain in domains]
    single = title_of(answer, answer.single)
    wide = len(domains)
    rows = [
        [line.title, _kind(line), _seeds(line), *_cost(line)]
        + [f"{100 * line.scores[domain]:.2f}" for domain in domains]
        + [_peer(line, answer), *(line.to_peer.get(domain) for domain in domains)]
        + [line.to_single.get(domain) for domain in domains]
        for line in (answer.base, *answer.lines)
    ]
    return Table(
        title="The answer",
        head=["condition", "kind", "seeds", "passes", "device-hours", *names, "reference", *names, *names],
        rows=rows,
        groups=[("", 3), ("cost of a seed", 2), ("mean, points", wide), ("against equal compute", 1 + wide)]
        + [(f"against {single}", wide)],
        text=2,
        note="Every condition's mean scores, and how far it is from batch-level shuffling.",
    )


def _kind(line: Line) -> str:
    return line.role + (", exploratory" if line.exploratory else "")


def _seeds(line: Line) -> str:
    if line.role == "base":
        return "-"
    return str(line.seeds) if line.finished else f"{line.seeds} of {line.wanted}"


def _cost(line: Line) -> list[str]:
    return ["-", "-"] if line.role == "base" else [f"{line.passes:.2f}", f"{line.device_seconds / 3600:.3f}"]


def _peer(line: Line, answer: Answer) -> str:
    return title_of(answer, line.peer) + (SHORT if line.short else "")


def type_table(answer: Answer) -> Table | None:
    """The same by task type, in-domain and out-of-domain sets together."""
    types = [mean for mean in answer.means if mean not in DOMAINS]
    if not types or not answer.lines:
        return None
    rows: list[Sequence[Cell]] = [
        [line.title, *(cell for kind in types for cell in (f"{100 * line.scores[kind]:.2f}", line.to_peer.get(kind)))]
        for line in (answer.base, *answer.lines)
    ]
    counts = {kind: len(answer.means[kind]) for kind in types}
    groups = [("", 1), *((f"{kind}, {count} set{'s' * (count > 1)}", 2) for kind, count in counts.items())]
    note = "In-domain and out-of-domain sets together: mean, and gap to the reference at equal compute."
    return Table("By task type", ["condition", *["points", "gap"] * len(types)], rows, groups, note=note)


def goal_table(answer: Answer) -> Table | None:
    """Every merge that may decide a goal, the closest first."""
    attempts = answer.goals[0].attempts
    if not attempts:
        return None
    rows: list[Sequence[Cell]] = [
        [a.line.title, _peer(a.line, answer), f"{a.line.passes:.2f}", *_steps(a), a.state, a.why or "-"]
        for a in attempts
    ]
    targets = [f"{DOMAINS[domain]}, target {100 * target:+.1f}" for domain, target in TARGETS.items()]
    groups = [("", 3), *((words, 3) for words in targets), ("", 2)]
    head = ["merge", "reference", "passes", *["gap", "to target", "over other tasks"] * 2, "verdict", "why"]
    note = "Merges of the core grid against the reference at equal compute, the closest first."
    return Table("The goals, merge by merge", head, rows, groups, text=2, note=note)


def _steps(attempt: Attempt) -> Iterator[Cell]:
    for domain, target in TARGETS.items():
        gap, wide = attempt.line.to_peer.get(domain), attempt.line.over_tasks.get(domain)
        yield gap
        yield None if gap is None else f"{100 * gap.above(target):+.2f}"
        yield None if wide is None else Gap(wide.difference, wide)


def control_table(answer: Answer) -> Table | None:
    """The merge that is closest to the goals, against every control."""
    if answer.leading is None or not answer.beside:
        return None
    domains = [domain for domain in DOMAINS if domain in answer.means]
    rows: list[Sequence[Cell]] = [
        [line.title, f"{line.passes:.2f}", *(answer.beside[line.name].get(domain) for domain in domains)]
        for line in answer.lines
        if line.name in answer.beside
    ]
    note = (
        f"{answer.leading.title} ({answer.leading.passes:.2f} passes) minus each control. It was picked on these "
        "scores, which flatters it."
    )
    head = ["control", "passes", *(DOMAINS[domain] for domain in domains)]
    return Table(f"{answer.leading.title} against the controls", head, rows, note=note)


def task_table(answer: Answer) -> Table | None:
    """Set by set: the single run's points, and every other condition's gap to it."""
    single = answer.line(answer.single)
    others = [line for line in answer.lines if line.task_gaps]
    if single is None or not others:
        return None
    rows: list[Sequence[Cell]] = [
        [task.name, task.task_type, _DOMAINS.get(task.domain, "-"), f"{100 * single.by_task[task.name]:.2f}"]
        + [line.task_gaps[task.name] for line in others]
        for task in answer.tasks
    ]
    head = ["set", "task", "domain", f"{single.title}, points", *(line.title for line in others)]
    note = f"Gaps to {single.title}, in points; bold where the interval leaves out zero."
    return Table("Set by set", head, rows, text=3, note=note, brief=True)


def cosines(found: ConditionResult) -> list[float]:
    """Cosine of the task vectors of each two members, mean over seeds; nothing for one member."""
    matrices = [seed.cosine for seed in found.seeds if len(seed.cosine) > 1]
    pairs = combinations(range(len(matrices[0])), 2) if matrices else ()
    return [math.fsum(m[i][j] for m in matrices) / len(matrices) for i, j in pairs]


def cosine_table(result: StudyResult) -> Table | None:
    """How alike the members of each condition are."""
    rows: list[Sequence[Cell]] = []
    for found in result.conditions:
        values, ratios = cosines(found), found.seeds[0].ratios
        if values:
            told = [math.fsum(values) / len(values), min(values), max(values)]
            rows.append([found.condition.shown, ", ".join(map(percent, ratios))]
                        + [f"{value:.3f}" for value in told])  # fmt: skip
    head = ["condition", "bags of the members", "mean", "lowest", "highest"]
    note = "Cosine of the members' task vectors (member minus base), every two of them, mean over seeds."
    return Table("Do the members agree?", head, rows, text=2, note=note) if rows else None


def found_table(result: StudyResult) -> Table | None:
    """What the searches of merge weights and scale found, seed by seed."""
    rows: list[Sequence[Cell]] = [
        [found.condition.shown, str(seed.seed), *_found(seed)]
        for found in result.conditions
        for seed in found.seeds
        if seed.found
    ]
    head = ["condition", "seed", "trials", "objective", "scale", "weights found", "weights by ratio"]
    note = "Judged on dev half A, never on a reported set. Weights are shares, in the order of the members."
    return Table("What the search found", head, rows, text=2, note=note) if rows else None


def _found(seed: SeedResult) -> list[Cell]:
    found: Mapping[str, Any] = seed.found or {}
    value, scale = found.get("value"), found.get("scale", seed.scale)
    return [
        str(found.get("trials", "-")),
        "-" if value is None else f"{value:.4f}",
        "-" if scale is None else f"{scale:.2f}",
        _shares(found.get("weights") or seed.weights),
        _shares(seed.ratios),
    ]


def shares(weights: Sequence[float]) -> list[float]:
    """Each part of the whole."""
    total = math.fsum(weights) or 1.0
    return [weight / total for weight in weights]


def _shares(weights: Sequence[float]) -> str:
    return " ".join(f"{share:.2f}" for share in shares(weights)) or "-"


def seed_table(result: StudyResult, answer: Answer) -> Table | None:
    """Every finished seed by itself."""
    domains = [domain for domain in DOMAINS if domain in answer.means]
    rows: list[Sequence[Cell]] = [
        [found.condition.shown, str(seed.seed), ", ".join(map(percent, seed.ratios))]
        + [f"{seed.passes:.3f}", f"{seed.device_seconds / 3600:.3f}", f"{seed.scale:.2f}"]
        + [f"{100 * _mean_of(seed, answer.means[domain]):.2f}" for domain in domains]
        for found in result.conditions
        for seed in found.seeds
    ]
    head = ["condition", "seed", "bags of the members", "passes", "device-hours", "scale"]
    head += [DOMAINS[domain] for domain in domains]
    return Table("Seed by seed", head, rows, text=3, note="Means in points.") if rows else None


def _mean_of(seed: SeedResult, weights: Mapping[str, float]) -> float:
    return math.fsum(weight * seed.scored.scores[task] for task, weight in weights.items())
