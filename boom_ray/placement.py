"""Who trains when and how wide: the plan that ends the whole ensemble soonest, and what no plan can beat. Pure.

Members are moldable jobs: a wider one ends sooner but wastes a little on communication. Every duration that some member
could have at some width is tried as everyone's target, then a row of deadlines for the whole, packing the members
longest first; the best plan is then improved width by width.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence

from boom_ray.config import BoomError
from boom_ray.resources import Job, Limits, Placement, Speed

_DEADLINES = 100  # ends of the whole ensemble that are tried between the lower bound and the best plan so far
_EPS = 1e-9


def place(jobs: Sequence[Job], limits: Limits, speed: Speed = Speed()) -> list[Placement]:
    """Widths, order and times that end all jobs soonest, in order of start.

    Raises:
        BoomError: a frozen width that the cluster cannot hold; it would wait for ever.
    """
    for job in jobs:
        if job.width is not None and job.width > limits.slots:
            raise BoomError(
                f"{job.name} was started with {job.width} workers, but only {limits.slots} fit now. Use a cluster of "
                f"the same size, or --replan: it goes on from its last checkpoint with another width."
            )
    if not jobs:
        return []
    jobs = sorted(jobs, key=lambda job: (-job.work, job.name))  # ties are broken by name, never by who came first
    pack = _Packer(jobs, limits, speed)
    targets = sorted({speed.seconds(job.work, width) for job in jobs for width in pack.widths(job)})
    plans = [pack.longest_first([pack.least(job, target) for job in jobs]) for target in targets]
    low, high = lower_bound(jobs, limits, speed), min(map(makespan, plans))
    plans += [pack.until(low + (high - low) * step / _DEADLINES) for step in range(_DEADLINES)]
    return pack.improved(min(plans, key=_cost))


def makespan(placements: Iterable[Placement]) -> float:
    return max((p.end for p in placements), default=0.0)


def busy_seconds(placements: Iterable[Placement]) -> float:
    """Worker-seconds that members hold."""
    return sum(p.width * (p.end - p.start) for p in placements)


def lower_bound(jobs: Sequence[Job], limits: Limits, speed: Speed = Speed()) -> float:
    """A makespan that no plan can beat: the least T for which nothing proves T impossible.

    In a plan that ends by T every job has a width that ends it within T, and the widths times the durations fit into
    ``slots * T`` (Turek, Wolf and Yu 1992; Ludwig and Tiwari 1994). Jobs longer than T/2 all run at the moment T/2, so
    their widths together fit into ``slots`` (the two shelves of Mounie, Rapine and Trystram 2007). Of all choices of
    widths that keep to this the one of the least area is taken. The durations also fit into ``max_concurrent * T``.
    """
    widest = [min(speed.seconds(job.work, width) for width in _widths(job, limits)) for job in jobs]
    low = max([0.0, *widest, sum(widest) / max(1, limits.places(len(jobs)))])
    high = max(low, sum(speed.seconds(job.work, job.width or 1) for job in jobs))
    if _fits(jobs, low, limits, speed):
        return low
    for _ in range(48):
        middle = (low + high) / 2
        low, high = (low, middle) if _fits(jobs, middle, limits, speed) else (middle, high)
    return low


def _fits(jobs: Sequence[Job], target: float, limits: Limits, speed: Speed) -> bool:
    """Whether widths exist whose area fits into ``slots * target``, those of jobs longer than half of it side by side.

    Of a job two widths matter: the least that ends it by the target, and the least that ends it in half the time.
    """
    best = {0: 0.0}  # the least area, by the slots that are taken at half time
    for job in jobs:
        choices: dict[int, float] = {}
        for within in (target, target / 2):
            width = next((w for w in _widths(job, limits) if speed.seconds(job.work, w) <= within * (1 + _EPS)), None)
            if width is not None:
                seconds = speed.seconds(job.work, width)
                choices[width if seconds > target / 2 * (1 + _EPS) else 0] = width * seconds
        grown: dict[int, float] = {}
        for taken, area in best.items():
            for more, extra in choices.items():
                if taken + more <= limits.slots:
                    grown[taken + more] = min(area + extra, grown.get(taken + more, math.inf))
        best = grown
    return bool(best) and min(best.values()) <= limits.slots * target * (1 + _EPS)


def _widths(job: Job, limits: Limits) -> Sequence[int]:
    return (job.width,) if job.width is not None else range(1, limits.widest + 1)


def _cost(plan: Sequence[Placement]) -> tuple[float, float]:
    return makespan(plan), busy_seconds(plan)


Free = list[tuple[float, int]]  # (since when, how many), soonest first


class _Calendar:
    """When slots, and places for one more member at once, are free."""

    def __init__(self, slots: int, places: int) -> None:
        self._slots: Free = [(0.0, slots)]
        self._places: Free = [(0.0, places)]

    def start(self, width: int) -> float:
        """The soonest that ``width`` slots and a place are free."""
        return max(_soonest(self._slots, width), _soonest(self._places, 1))

    def book(self, width: int, seconds: float) -> float:
        """Take them; returns when they are free again."""
        start = self.start(width)
        self._slots = _taken(self._slots, width, start, start + seconds)
        self._places = _taken(self._places, 1, start, start + seconds)
        return start + seconds


def _soonest(free: Free, count: int) -> float:
    for since, here in free:
        count -= here
        if count <= 0:
            return since
    raise ValueError("more slots are asked for than there are")


def _taken(free: Free, count: int, start: float, until: float) -> Free:
    """What is free when ``count`` are held from ``start`` on: those that were free last, so that long gaps stay."""
    left: Free = []
    for since, here in reversed(free):
        used = min(here, count) if since <= start else 0
        count -= used
        if here > used:
            left.append((since, here - used))
    left.reverse()
    insort(left, (until, sum(here for _, here in free) - sum(here for _, here in left)))
    return left


class _Packer:
    """List scheduling of some jobs, which are given most work first, within limits."""

    def __init__(self, jobs: Sequence[Job], limits: Limits, speed: Speed) -> None:
        self._jobs, self._limits, self._speed = jobs, limits, speed

    def widths(self, job: Job) -> Sequence[int]:
        return _widths(job, self._limits)

    def least(self, job: Job, target: float) -> int:
        """The least width that reaches the target, else the widest."""
        within = target * (1 + _EPS)
        return next((w for w in self.widths(job) if self._speed.seconds(job.work, w) <= within), self.widths(job)[-1])

    def longest_first(self, widths: Sequence[int]) -> list[Placement]:
        """Jobs with given widths, longest duration first."""
        seconds = [self._speed.seconds(job.work, w) for job, w in zip(self._jobs, widths, strict=True)]
        order = sorted(range(len(widths)), key=lambda i: (-seconds[i], self._jobs[i].name))
        calendar = self._calendar()
        return _in_order(self._book(calendar, self._jobs[i], widths[i]) for i in order)

    def until(self, deadline: float) -> list[Placement]:
        """Most work first: each job takes the least width that ends it by the deadline, else the soonest end."""
        calendar, within = self._calendar(), deadline * (1 + _EPS)

        def choose(job: Job) -> int:
            ends = [(calendar.start(w) + self._speed.seconds(job.work, w), w) for w in self.widths(job)]
            return next((width for end, width in ends if end <= within), min(ends)[1])

        return _in_order(self._book(calendar, job, choose(job)) for job in self._jobs)

    def improved(self, plan: list[Placement]) -> list[Placement]:
        """The plan with single widths changed by one for as long as that makes it better."""
        while True:
            chosen = {p.name: p.width for p in plan}
            widths = [chosen[job.name] for job in self._jobs]
            better = min((self.longest_first(w) for w in self._neighbours(widths)), key=_cost, default=plan)
            if _cost(better) >= (makespan(plan) * (1 - _EPS), 0.0):
                return plan
            plan = better

    def _neighbours(self, widths: list[int]) -> Iterator[list[int]]:
        for i, job in enumerate(self._jobs):
            for width in (widths[i] - 1, widths[i] + 1):
                if width in self.widths(job):
                    yield [*widths[:i], width, *widths[i + 1 :]]

    def _calendar(self) -> _Calendar:
        return _Calendar(self._limits.slots, self._limits.places(len(self._jobs)))

    def _book(self, calendar: _Calendar, job: Job, width: int) -> Placement:
        seconds = self._speed.seconds(job.work, width)
        end = calendar.book(width, seconds)
        return Placement(job.name, width, end - seconds, end)


def _in_order(placed: Iterable[Placement]) -> list[Placement]:
    return sorted(placed, key=lambda p: (p.start, p.name))
