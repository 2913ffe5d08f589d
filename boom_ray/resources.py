"""Who trains where and when: widths, order and makespan of an ensemble. Pure arithmetic, no Ray.

Members are moldable jobs: a wider one ends sooner but wastes a little on communication. Widths and order are chosen to
end the whole ensemble soonest: every duration that some member could have at some width is tried as everyone's target,
then a row of deadlines for the whole, packing the members longest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from boom_ray.config import BoomError

_DEADLINES = 100  # ends of the whole ensemble that are tried between the lower bound and the best plan so far
_EFFICIENCY = 0.92  # what each doubling of the width keeps of the ideal speed


@dataclass(frozen=True)
class Job:
    """A member to place: ``work`` in device-seconds (or any unit of work), ``width`` when it is frozen already."""

    name: str
    work: float
    width: int | None = None


@dataclass(frozen=True)
class Placement:
    """A member's workers and its planned time, from the start of training."""

    name: str
    width: int
    start: float
    end: float


@dataclass(frozen=True)
class Bundle:
    """What one worker takes."""

    cpus: int
    gpus: float

    @property
    def per_worker(self) -> dict[str, float]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


def bundle(totals: Mapping[str, float], cpus_per_worker: int, gpus_per_worker: float | None) -> Bundle:
    """One worker's bundle on a cluster: a GPU each where there are GPUs, unless the recipe says otherwise."""
    gpus = gpus_per_worker if gpus_per_worker is not None else (1.0 if totals.get("GPU", 0) > 0 else 0.0)
    return Bundle(cpus_per_worker, gpus)


def slots(nodes: Sequence[Mapping[str, float]], needed: Bundle) -> int:
    """Workers that fit on the nodes at once.

    Raises:
        BoomError: not even one fits.
    """
    count = 0
    for node in nodes:
        fits = math.floor(node.get("CPU", 0) / needed.cpus)
        if needed.gpus:
            fits = min(fits, math.floor(node.get("GPU", 0) / needed.gpus))
        count += fits
    if count < 1:
        raise BoomError(
            f"no node has room for one worker of {needed.cpus} CPUs and {needed.gpus:g} GPUs. "
            f"Lower resources.cpus_per_worker or resources.gpus_per_worker, or add nodes."
        )
    return count


def speed(width: int) -> float:
    """Relative speed of ``width`` workers."""
    return width * _EFFICIENCY ** math.log2(width)


def place(jobs: Sequence[Job], slots: int, max_width: int, max_concurrent: int | None = None) -> list[Placement]:
    """Widths, order and times that end all jobs soonest, at most ``max_concurrent`` at once; in order of start.

    Raises:
        BoomError: a frozen width that the cluster cannot hold; it would wait for ever.
    """
    for job in jobs:
        if job.width is not None and job.width > slots:
            raise BoomError(
                f"{job.name} was started with {job.width} workers, but only {slots} fit now. Use a cluster of the "
                f"same size, or delete placement/ in the run directory to plan it anew."
            )
    widest = min(max_width, slots)
    room = (slots, min(max_concurrent or len(jobs), len(jobs)))
    targets = sorted({job.work / speed(w) for job in jobs for w in range(1, widest + 1)})
    plans = [_pack(jobs, [_width(job, target, widest) for job in jobs], room) for target in targets]
    high = min((makespan(plan) for plan in plans), default=0.0)
    low = sum(job.work for job in jobs) / slots
    plans += [_pack_until(jobs, low + (high - low) * step / _DEADLINES, room, widest) for step in range(_DEADLINES)]
    return min(plans, key=lambda plan: (makespan(plan), sum(p.width for p in plan)), default=[])


def makespan(placements: Sequence[Placement]) -> float:
    return max((p.end for p in placements), default=0.0)


def _width(job: Job, target: float, widest: int) -> int:
    """The smallest width that reaches the target, else the widest."""
    if job.width is not None:
        return job.width
    return next((w for w in range(1, widest + 1) if job.work / speed(w) <= target * (1 + 1e-9)), widest)


class _Calendar:
    """When slots, and places for one more member at once, are free."""

    def __init__(self, room: tuple[int, int]) -> None:
        self._slots = [0.0] * room[0]
        self._places = [0.0] * room[1]

    def start(self, width: int) -> float:
        """The soonest that ``width`` slots and a place are free."""
        return max(sorted(self._slots)[width - 1], min(self._places))

    def book(self, job: Job, width: int) -> Placement:
        start = self.start(width)
        end = start + job.work / speed(width)
        self._slots.sort()
        self._slots[:width] = [end] * width
        self._places.sort()
        self._places[0] = end
        return Placement(job.name, width, start, end)


def _pack(jobs: Sequence[Job], widths: Sequence[int], room: tuple[int, int]) -> list[Placement]:
    """List scheduling of jobs with given widths, longest duration first."""
    calendar = _Calendar(room)
    pairs = sorted(zip(jobs, widths, strict=True), key=lambda pair: (-pair[0].work / speed(pair[1]), pair[0].name))
    return _in_order(calendar.book(job, width) for job, width in pairs)


def _pack_until(jobs: Sequence[Job], deadline: float, room: tuple[int, int], widest: int) -> list[Placement]:
    """List scheduling, most work first: each job takes the least width that ends it by the deadline, else soonest."""
    calendar = _Calendar(room)

    def choose(job: Job) -> int:
        widths = [job.width] if job.width is not None else list(range(1, widest + 1))
        ends = [(calendar.start(width) + job.work / speed(width), width) for width in widths]
        return next((width for end, width in ends if end <= deadline * (1 + 1e-9)), min(ends)[1])

    return _in_order(calendar.book(job, choose(job)) for job in sorted(jobs, key=lambda job: (-job.work, job.name)))


def _in_order(placed: Iterable[Placement]) -> list[Placement]:
    return sorted(placed, key=lambda p: (p.start, p.name))
