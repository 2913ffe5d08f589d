"""The plan of the members that are still to train: from recipe, ledger and cluster to widths, order and times. Light.

A run carries it out; ``boom-ray plan --cluster`` only shows it, for a cluster that need not be there yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from boom_ray.config import Recipe
from boom_ray.costs import estimate, measured_speed
from boom_ray.ledger import Ledger
from boom_ray.placement import busy_seconds, lower_bound, makespan, place
from boom_ray.plan import Keys
from boom_ray.records import frozen
from boom_ray.resources import Bundle, Job, Limits, Placement, Speed, bundle, described_nodes, slots

Nodes = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class EnsemblePlan:
    """Who trains when and how wide. Times are seconds where a speed is known (``timed``), else in work of one worker.

    ``bound`` is a makespan that no plan can beat.
    """

    placements: tuple[Placement, ...]
    bound: float
    limits: Limits
    bundle: Bundle
    speed: Speed
    timed: bool

    @property
    def makespan(self) -> float:
        return makespan(self.placements)

    @property
    def over_bound(self) -> float:
        """Share by which the plan is longer than the bound: the best plan is at most so much shorter."""
        return self.makespan / self.bound - 1 if self.bound else 0.0

    @property
    def busy_share(self) -> float:
        """Share of the workers' time, to the end of the last member, that members hold."""
        return busy_seconds(self.placements) / (self.limits.slots * self.makespan) if self.placements else 0.0

    @property
    def busy_hours(self) -> float | None:
        """Device-hours that members hold."""
        return busy_seconds(self.placements) * self._devices / 3600 if self.timed else None

    @property
    def held_hours(self) -> float | None:
        """Device-hours of the whole cluster until the last member ends."""
        return self.limits.slots * self.makespan * self._devices / 3600 if self.timed else None

    @property
    def _devices(self) -> float:
        """What one worker computes on: GPUs, else CPU cores."""
        return self.bundle.gpus or float(self.bundle.cpus)

    def to_json(self, price: float | None) -> dict[str, Any]:
        hours = {"busy": self.busy_hours, "held": self.held_hours}
        cost = {
            name: price * value if price is not None and value is not None else None for name, value in hours.items()
        }
        return {
            "unit": "seconds" if self.timed else "work of one worker",
            "members": [asdict(p) for p in self.placements],
            "makespan": self.makespan,
            "lower_bound": self.bound,
            "over_bound": self.over_bound,
            "slots": self.limits.slots,
            "speed": asdict(self.speed),
            "busy_share": self.busy_share,
            "device_hours": hours,
            "cost": cost,
        }


def missing_members(ledger: Ledger, keys: Keys) -> list[int]:
    """Numbers of the members that are still to train."""
    return [i for i, key in keys.ensemble.items() if not ledger.has(key)]


def member_jobs(ledger: Ledger, keys: Keys, rows: Mapping[int, float]) -> list[Job]:
    """The members with these numbers as work in rows; a width that one was started with stays."""
    started = {i: frozen(ledger, keys.members[i]) for i in rows}
    return [Job(f"member-{i}", count, was.width if (was := started[i]) else None) for i, count in rows.items()]


def planned_nodes(cluster: str, recipe: Recipe) -> Nodes:
    """The nodes of a cluster that is described, or of the one that runs (``auto``).

    Raises:
        BoomError: it cannot be read, or none runs.
    """
    if cluster == "auto":
        from boom_ray.cluster.session import running_nodes

        return running_nodes()
    gpus = recipe.resources.gpus_per_worker
    return described_nodes(cluster, Bundle(recipe.resources.cpus_per_worker, 1.0 if gpus is None else gpus))


def ensemble_plan(recipe: Recipe, jobs: Sequence[Job], nodes: Nodes, speed: Speed | None) -> EnsemblePlan:
    """Place members on a cluster.

    Args:
        speed: in rows per second; None where nothing is known.

    Raises:
        BoomError: no worker fits on a node, or a member was started wider than the cluster is.
    """
    totals = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    settings = recipe.resources
    needed = bundle(totals, settings.cpus_per_worker, settings.gpus_per_worker)
    widest = min(settings.max_width, recipe.train.batch_size)
    limits = Limits(slots(nodes, needed), widest, settings.max_concurrent)
    shown = speed or Speed()
    placements = tuple(place(jobs, limits, shown))
    return EnsemblePlan(placements, lower_bound(jobs, limits, shown), limits, needed, shown, speed is not None)


@dataclass(frozen=True)
class Assumed:
    """What a person says of a run that has not begun: rows of the corpus, rows per second of one worker."""

    rows: int | None = None
    rows_per_second: float | None = None


def forecast_jobs(
    recipe: Recipe, ledger: Ledger, keys: Keys, assumed: Assumed, replan: bool = False
) -> tuple[list[Job], Speed | None]:
    """A run's missing members as they are known before they are drawn, and their speed.

    Rows are exact once the bags are drawn; before, they follow from those of the corpus, or from ``assumed.rows`` while
    there is none. Without these, or where no speed is known, the work is each member's share of the corpus, and the
    speed is None: times are relative.

    Args:
        replan: as if no member had been started yet.
    """
    costs, todo = estimate(recipe, ledger, keys), missing_members(ledger, keys)
    corpus = costs["corpus"].rows or assumed.rows
    found = {i: costs[f"member-{i}"].rows or _assumed_rows(recipe, keys.rules[i].ratio, corpus) for i in todo}
    rows = {i: count for i, count in found.items() if count}
    speed = Speed(assumed.rows_per_second) if assumed.rows_per_second else measured_speed(ledger, keys, recipe)
    known = len(rows) == len(todo)
    jobs = member_jobs(ledger, keys, rows if known else {i: keys.rules[i].ratio for i in todo})
    return [replace(job, width=None) for job in jobs] if replan else jobs, speed if known else None


def _assumed_rows(recipe: Recipe, ratio: float, rows: int | None) -> float | None:
    """Of one member, where so many rows are trained on."""
    train = recipe.train
    counts = [
        *([ratio * rows * train.epochs] if rows else []),
        *([float(train.max_steps * train.batch_size)] if train.max_steps else []),
    ]
    return min(counts, default=None)
