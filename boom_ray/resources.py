"""Who trains where and when: widths, order and makespan of an ensemble. Pure arithmetic, no Ray.

Members are moldable jobs: a wider one ends sooner but wastes a little on communication. Widths and order are chosen to
end the whole ensemble soonest, by trying every target duration that some member could have at some width and packing
the members longest first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boom_ray.config import BoomError

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


def place(jobs: Sequence[Job], slots: int, max_width: int) -> list[Placement]:
    """Widths, order and times that end all jobs soonest; in order of start, longest first.

    A frozen width that the cluster cannot hold is a BoomError: it would wait for ever.
    """
    for job in jobs:
        if job.width is not None and job.width > slots:
            raise BoomError(
                f"{job.name} was started with {job.width} workers, but only {slots} fit now. Use a cluster of the "
                f"same size, or delete placement/ in the run directory to plan it anew."
            )
    widest = min(max_width, slots)
    targets = {job.work / speed(w) for job in jobs for w in range(1, widest + 1)}
    plans = [_pack(jobs, [_width(job, target, widest) for job in jobs], slots) for target in sorted(targets)]
    return min(plans, key=lambda plan: (makespan(plan), sum(p.width for p in plan)), default=[])


def makespan(placements: Sequence[Placement]) -> float:
    return max((p.end for p in placements), default=0.0)


def _width(job: Job, target: float, widest: int) -> int:
    """The smallest width that reaches the target, else the widest."""
    if job.width is not None:
        return job.width
    return next((w for w in range(1, widest + 1) if job.work / speed(w) <= target * (1 + 1e-9)), widest)


def _pack(jobs: Sequence[Job], widths: Sequence[int], slots: int) -> list[Placement]:
    """List scheduling, longest duration first: each job takes the ``width`` slots that are free soonest."""
    free_at = [0.0] * slots
    placed = []
    durations = [(job.work / speed(width), job, width) for job, width in zip(jobs, widths, strict=True)]
    for duration, job, width in sorted(durations, key=lambda item: (-item[0], item[1].name)):
        chosen = sorted(range(slots), key=lambda s: free_at[s])[:width]
        start = max(free_at[s] for s in chosen)
        for s in chosen:
            free_at[s] = start + duration
        placed.append(Placement(job.name, width, start, start + duration))
    return sorted(placed, key=lambda p: (p.start, p.name))
