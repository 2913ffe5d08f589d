"""What a cluster has and what members take of it: workers that fit on nodes, speed by width. Pure arithmetic, no Ray.

:mod:`boom_ray.placement` makes plans of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from boom_ray.config import BoomError

_EFFICIENCY = 0.92  # what each doubling of the width keeps of the ideal speed, until this cluster has been measured
_EFFICIENCIES = (0.55, 1.0)  # what a measurement is believed: a wider member is faster, but never more efficient


@dataclass(frozen=True)
class Job:
    """A member to place: ``work`` in rows (or what its speed is told in), ``width`` if it is frozen already."""

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


def fitting(nodes: Sequence[Mapping[str, float]], needed: Bundle) -> int:
    """Workers that fit on the nodes at once; a worker does not span nodes, a member may."""
    count = 0
    for node in nodes:
        fits = math.floor(node.get("CPU", 0) / needed.cpus)
        if needed.gpus:
            fits = min(fits, math.floor(node.get("GPU", 0) / needed.gpus))
        count += fits
    return count


def slots(nodes: Sequence[Mapping[str, float]], needed: Bundle) -> int:
    """Workers that fit on the nodes at once, of which there must be one.

    Raises:
        BoomError: not even one worker fits.
    """
    count = fitting(nodes, needed)
    if count < 1:
        raise BoomError(
            f"no node has room for one worker of {needed.cpus} CPUs and {needed.gpus:g} GPUs. "
            f"Lower resources.cpus_per_worker or resources.gpus_per_worker, or add nodes."
        )
    return count


def described_nodes(text: str, needed: Bundle) -> list[dict[str, float]]:
    """The nodes of a cluster that is only described: ``4x8`` or ``4x8xH100`` (nodes x devices), ``8`` or ``8xH100``.

    A device is what one worker computes on: a GPU, or a CPU core where workers take no GPU. CPUs never run short.

    Raises:
        BoomError: it cannot be read.
    """
    found = re.fullmatch(r"(?:(\d+)x)?(\d+)(?:x([A-Za-z][\w.-]*))?", text.strip())
    if not found or min(int(found[1] or 1), int(found[2])) < 1:
        raise BoomError(
            f"--cluster {text!r} is no cluster: give NODESxDEVICES, as in 4x8 or 4x8xH100, devices alone, as in 8 or "
            f"8xH100, or auto for the Ray cluster that is running."
        )
    devices = int(found[2])
    cpus = devices / needed.gpus * needed.cpus if needed.gpus else devices
    node = {"CPU": float(cpus), **({"GPU": float(devices)} if needed.gpus else {})}
    return [dict(node) for _ in range(int(found[1] or 1))]


@dataclass(frozen=True)
class Speed:
    """How long a member takes: ``rate`` is the work per second of one worker, each doubling of the width keeps
    ``efficiency`` of the ideal, and ``startup`` seconds pass beside the steps (workers starting, the member written).
    """

    rate: float = 1.0
    efficiency: float = _EFFICIENCY
    startup: float = 0.0

    def of(self, width: int) -> float:
        """Speed of ``width`` workers relative to one."""
        return width * self.efficiency ** math.log2(width)

    def seconds(self, work: float, width: int) -> float:
        return self.startup + work / (self.rate * self.of(width))


@dataclass(frozen=True)
class Measured:
    """A member that was trained: workers, rows, seconds of its steps, seconds beside them (None: not known)."""

    width: int
    rows: float
    seconds: float
    startup: float | None = None


def fit_speed(measured: Sequence[Measured]) -> Speed | None:
    """The speed that members have shown: least squares of ``log(rows/s per worker)`` over ``log2(width)``.

    Where all had the same width, the efficiency is the assumed one. None where nothing was measured.
    """
    if not measured:
        return None
    points = [(math.log2(m.width), math.log(m.rows / m.seconds / m.width)) for m in measured]
    middle, level = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    slope = math.log(_EFFICIENCY)
    if spread:
        slope = sum((x - middle) * (y - level) for x, y in points) / spread
    efficiency = min(max(math.exp(slope), _EFFICIENCIES[0]), _EFFICIENCIES[1])
    known = [m.startup for m in measured if m.startup is not None]
    return Speed(math.exp(level - middle * math.log(efficiency)), efficiency, median(known) if known else 0.0)


@dataclass(frozen=True)
class Limits:
    """What a plan must keep to: workers at once, workers of one member, members at once (default: as many as fit)."""

    slots: int
    max_width: int
    max_concurrent: int | None = None

    @property
    def widest(self) -> int:
        return min(self.max_width, self.slots)

    def places(self, jobs: int) -> int:
        """Members at once, of so many."""
        return min(self.max_concurrent or jobs, jobs)
