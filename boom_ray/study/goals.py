"""The goals that a study decides, and how each merge stands to them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from boom_ray.evaluate.significance import Interval

State = Literal["reached", "not reached", "cannot be told"]
_REACHED: State = "reached"
_MISSED: State = "not reached"
_OPEN: State = "cannot be told"
_ORDER = (_REACHED, _OPEN, _MISSED)  # the best of a goal's attempts is the goal's
_WORDS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain"}
TARGETS: Mapping[str, float] = {"out_of_domain": 0.010, "in_domain": 0.005}  # least gaps, scores in 0..1


@dataclass(frozen=True)
class Gap:
    """A difference of mean scores, 0..1, with its interval where the units of all scores are known."""

    value: float
    interval: Interval | None

    def above(self, target: float) -> float:
        """How far it is over a target, to the hundredth of a point that tables show."""
        return round(self.value, 4) - target

    @property
    def certain(self) -> bool:
        """The interval leaves out zero."""
        return self.interval is not None and self.interval.certain


@dataclass(frozen=True)
class Line:
    """A condition as the tables show it, over its finished seeds.

    Attributes:
        wanted: seeds that the study asks for.
        passes: rows trained by all members of a seed / training rows of the corpus; mean over seeds.
        device_seconds: of one seed, as if no other condition shared its members; mean over seeds.
        scores: 0..1, of every mean.
        by_task: 0..1, of every task.
        peer: name of the reference at equal compute; None for a reference, and where there is none.
        short: the peer is the longest there is, and took less compute than this condition.
        to_peer: gap of every mean to the peer.
        to_single: gap of the domains' means to the single run, the reference of about one pass; empty for itself.
        task_gaps: gap of every task to the single run.
        over_tasks: gap of a domain's mean to the peer over other tasks like these; None for fewer than three.
    """

    name: str
    title: str
    role: Literal["base", "reference", "merge", "control"]
    exploratory: bool
    seeds: int
    wanted: int
    passes: float
    device_seconds: float
    scores: Mapping[str, float]
    by_task: Mapping[str, float]
    peer: str | None = None
    short: bool = False
    to_peer: dict[str, Gap] = field(default_factory=dict)
    to_single: dict[str, Gap] = field(default_factory=dict)
    task_gaps: dict[str, Gap] = field(default_factory=dict)
    over_tasks: Mapping[str, Interval | None] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.seeds >= self.wanted


@dataclass(frozen=True)
class Attempt:
    """A condition and a goal. ``margin``: of the worse domain above its target; ``why`` it is not reached."""

    line: Line
    state: State
    why: str
    margin: float


@dataclass(frozen=True)
class Goal:
    """``attempts``: of the merges that may decide it, those that reach it first, then the closest; ``beside``:
    exploratory merges and controls with gaps as large, which decide nothing."""

    title: str
    state: State
    attempts: tuple[Attempt, ...]
    beside: tuple[Line, ...]


def judged(lines: Sequence[Line], most: float | None) -> tuple[Goal, ...]:
    """The two goals of the study.

    Args:
        most: passes that count as 1.0 times the cost of the single run; None where no single run is finished.
    """
    cheap = [line for line in lines if most is not None and line.passes <= most]
    return (
        _goal(
            "a merge beats batch-level shuffling at equal compute by at least 1.0 point out-of-domain and 0.5 point "
            "in-domain, with intervals above zero",
            lines,
            lines,
        ),
        _goal("a merge does so at 1.0 times the cost of the single run", cheap, lines),
    )


def _goal(title: str, candidates: Sequence[Line], lines: Sequence[Line]) -> Goal:
    unfinished = {line.name for line in lines if not line.finished}
    deciding = [line for line in candidates if line.role == "merge" and not line.exploratory]
    attempts = [_attempt(line, line.name in unfinished or line.peer in unfinished) for line in deciding]
    attempts.sort(key=lambda attempt: (attempt.state != _REACHED, -attempt.margin))
    states = {attempt.state for attempt in attempts}
    state: State = next((s for s in _ORDER if s in states), _OPEN)
    beside = [line for line in candidates if line not in deciding and line.role != "reference" and _met(line)]
    return Goal(title, state, tuple(attempts), tuple(beside))


def _met(line: Line) -> bool:
    """The gaps are as large as the targets, and their intervals above zero."""
    gaps = [(line.to_peer.get(domain), least) for domain, least in TARGETS.items()]
    return all(gap and gap.above(least) >= 0 and gap.certain for gap, least in gaps)


def _attempt(line: Line, unfinished: bool) -> Attempt:
    gaps = {domain: line.to_peer.get(domain) for domain in TARGETS}
    margin = min(gap.above(TARGETS[domain]) if gap else float("-inf") for domain, gap in gaps.items())
    intervals = {domain: gap.interval for domain, gap in gaps.items() if gap and gap.interval}
    below = [domain for domain, interval in intervals.items() if interval.high < TARGETS[domain]]
    if unfinished:
        state, why = _OPEN, "not all seeds are finished"
    elif line.peer is None:
        state, why = _OPEN, "no reference is finished"
    elif len(intervals) < len(TARGETS):
        state, why = _OPEN, "a domain has no sets, or what its scores were made from is not known"
    elif below:
        state, why = _MISSED, f"the whole interval is below the target {' and '.join(map(_WORDS.__getitem__, below))}"
    elif line.short:
        state, why = _OPEN, "no reference took as much compute"
    elif _met(line):
        state, why = _REACHED, ""
    else:
        state, why = _OPEN, _open(line)
    return Attempt(line, state, why, margin)


def _open(line: Line) -> str:
    """What keeps gaps whose intervals hold the targets from reaching them."""
    found = [(_WORDS[domain], line.to_peer[domain], least) for domain, least in TARGETS.items()]
    none = [word for word, gap, _ in found if not gap.certain]
    small = [word for word, gap, least in found if gap.certain and gap.above(least) < 0]
    parts = [f"{' and '.join(none)} the gap may be none"] if none else []
    parts += [f"{' and '.join(small)} it is too small, but its interval holds the target"] if small else []
    return "; ".join(parts)
