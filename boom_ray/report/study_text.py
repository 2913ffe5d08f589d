"""What a study says in plain sentences: the verdict on the goals, and what the numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from boom_ray.report.study_tables import SHORT, format_gap, title_of
from boom_ray.study.answer import DOMAINS, Answer
from boom_ray.study.goals import TARGETS, Goal, Line

if TYPE_CHECKING:
    from boom_ray.study.results import StudyResult

_MOST = 12  # names in a sentence; of more it tells how many


def headline(answer: Answer) -> str:
    """The answer in one sentence."""
    goal, best = answer.goals[0], answer.leading
    if best is None:
        return "No merge is finished yet." if answer.lines else "Nothing is finished yet."
    if best.peer is None:
        return "No reference is finished yet: there is nothing to compare a merge with."
    gaps = f"{best.title} (against {title_of(answer, best.peer)}): {_gaps(best)}"
    if goal.state == "reached":
        return f"A merge beats batch-level shuffling at equal compute. {gaps}."
    if goal.state == "not reached":
        return f"No merge beats batch-level shuffling at equal compute by the margin asked for. The closest, {gaps}."
    what = "Whether a merge beats batch-level shuffling at equal compute by the margin asked for"
    return f"{what} cannot be told. The closest, {gaps}."


def _gaps(line: Line) -> str:
    return ", ".join(f"{DOMAINS[domain]} {format_gap(line.to_peer.get(domain))}" for domain in TARGETS)


def verdict(answer: Answer, result: StudyResult) -> list[str]:
    """The goals with their verdicts, and what is still to come."""
    lines = [_goal(number, goal, answer) for number, goal in enumerate(answer.goals, 1)]
    return [*lines, f"Not finished: {_named(result.pending)}."] if result.pending else lines


def _goal(number: int, goal: Goal, answer: Answer) -> str:
    parts = [f"Goal {number}, {goal.title}: {goal.state}."]
    reached = [a.line.title for a in goal.attempts if a.state == "reached"]
    if reached:
        parts.append(f"Reached by {_named(reached)}.")
    for attempt in goal.attempts[:1]:
        line, why = attempt.line, f"; {attempt.why}" if attempt.why else ""
        who = f"{'Best' if reached else 'Closest'} of {len(goal.attempts)}: {line.title}"
        parts.append(f"{who} against {title_of(answer, line.peer)}, {_by(line)}{why}.")
    if not goal.attempts:
        parts.append("No merge of the core grid that could decide it is finished.")
    if goal.beside:
        named = _named([f"{x.title} ({'exploratory' if x.exploratory else x.role})" for x in goal.beside])
        parts.append(f"As large a gain, but deciding nothing: {named}.")
    return " ".join(parts)


def _by(line: Line) -> str:
    """By how much the targets are met or missed."""
    parts = []
    for domain, target in TARGETS.items():
        gap = line.to_peer.get(domain)
        if gap is None:
            parts.append(f"{DOMAINS[domain]} not known")
            continue
        over = 100 * gap.above(target)
        word = f"{over:.2f} above" if over >= 0 else f"{-over:.2f} short of"
        parts.append(f"{DOMAINS[domain]} {format_gap(gap)} ({word} {100 * target:+.1f})")
    return " and ".join(parts)


def _named(names: list[str] | tuple[str, ...]) -> str:
    shown = "; ".join(names[:_MOST])  # a name may hold commas
    return shown if len(names) <= _MOST else f"{shown} and {len(names) - _MOST} more"


def notes(answer: Answer, result: StudyResult) -> list[str]:
    """What the numbers are, and what they are not."""
    lines = [
        "Points are hundredths of each set's main score. ±: half a 95 % interval of the difference by paired "
        "bootstrap, over other queries and texts of these sets and, where a side has several seeds, over other "
        "training seeds; a side of one seed stands for that model. Of conditions that share members seed by seed, the "
        "seeds are paired, too. Bold: the interval leaves out zero. "
        "Over other tasks: the interval holds for other sets like these, too.",
        f"There are {answer.intervals:,} intervals here. If no condition differed from another, about "
        f"{round(answer.intervals / 20):,} of them would leave out zero by chance: read single cells with that in "
        "mind. The closest of several merges is flattered by having been picked.",
        "Equal compute: the cheapest reference with at least 98 % of the condition's passes (rows trained by all "
        "members / rows of the corpus). Device-hours are those of training all members of a seed, as if no other "
        "condition shared them.",
    ]
    if any(line.short for line in answer.lines):
        lines.append(f"{SHORT} No reference took as much compute; this is the longest there is, and it took less.")
    if any(line.exploratory for line in answer.lines):
        lines.append("Exploratory conditions show where to look next; they decide no goal.")
    if any(line.wanted == 1 and not line.exploratory for line in answer.lines):
        lines.append("Conditions of one seed say nothing of other training seeds.")
    sets = [sum(task.domain == domain for task in answer.tasks) for domain in DOMAINS]
    return [
        *lines,
        f"{result.rows:,} training rows, base {result.base_model}; {sets[0]} in-domain and {sets[1]} out-of-domain "
        f"sets, {_cap(result.cap)}, the same texts for all models.",
    ]


def _cap(cap: Any) -> str:
    if cap is None:
        return "with all their texts"
    if isinstance(cap, Mapping):
        return "texts at most: " + ", ".join(f"{key} {'all' if value is None else value}" for key, value in cap.items())
    return f"at most {cap} texts of each"
