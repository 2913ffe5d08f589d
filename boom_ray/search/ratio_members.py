"""The members of a search of ratios: how far each has been trained, what the next part costs, what all of it cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from boom_ray.config import Recipe
from boom_ray.costs import measured_speed
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import Keys, paused_key
from boom_ray.search.ratio_space import RatioSpace, rung_shares, steps_at
from boom_ray.train.work import Work, member_work

Place = tuple[int, int]  # slot of the space, rung


@dataclass(frozen=True)
class RatioTask:
    """A search to carry out.

    Attributes:
        recipe: its bags are all members that sets may hold, in the order of ``space.slots``; keys: of that recipe.
        folder: of the search's records, in the ledger's scratch space.
    """

    recipe: Recipe
    ledger: Ledger
    keys: Keys
    space: RatioSpace
    folder: Path


@dataclass(frozen=True)
class Training:
    """One start of a member: batches before and after, and what its workers took, landed or not."""

    member: str
    ratio: float
    number: int
    begun: int
    ended: int
    rows: int
    device_seconds: float
    landed: bool


class Pool:
    """The members that sets may hold, rung by rung.

    Attributes:
        work: task and batches by slot; shares: of the steps at each rung.
    """

    def __init__(self, task: RatioTask) -> None:
        self.task = task
        settings = task.recipe.ratio_search
        self.shares = rung_shares(settings.rungs, settings.eta)
        self.work: dict[int, Work] = {i: member_work(task.recipe, task.ledger, task.keys, i) for i in task.space.used}

    def step(self, slot: int, rung: int) -> int:
        """Batches that a member has been trained on at a rung."""
        return steps_at(self.shares[rung], self.work[slot][0].steps, self.task.recipe.train.accumulation)

    def key(self, slot: int, rung: int) -> Key:
        """The artifact of a member at a rung; at the last one, and where a rung is all its steps, the member."""
        member, step = self.task.keys.members[slot], self.step(slot, rung)
        return member if step == self.work[slot][0].steps else paused_key(member, step)

    def path(self, slot: int, rung: int) -> Path:
        return self.task.ledger.path(self.key(slot, rung)).resolve()

    def has(self, slot: int, rung: int) -> bool:
        return self.task.ledger.has(self.key(slot, rung))

    def trained(self, slot: int, below: int | None = None) -> int:
        """Batches that a member has been trained on, up to rung ``below``."""
        rungs = range(len(self.shares) if below is None else below)
        return max((self.step(slot, rung) for rung in rungs if self.has(slot, rung)), default=0)

    def missing(self, places: Iterable[Place]) -> dict[int, int]:
        """Slot -> the lowest rung that is still to be trained, of the places that are asked for."""
        found: dict[int, int] = {}
        for slot, rung in sorted(places):
            if not self.has(slot, rung):
                found.setdefault(slot, rung)
        return found

    def rows(self, slot: int, rung: int) -> int:
        """Rows that a member trains on from where it stands to a rung."""
        batches = self.work[slot][1][self.trained(slot, rung) : self.step(slot, rung)]
        return sum(len(batch.rows) for batch in batches)


class Costs:
    """Trainings of a search, kept in a small file that is replaced whole; what the next ones will cost."""

    def __init__(self, task: RatioTask) -> None:
        self._task = task
        self._file = task.folder / "trainings.json"
        self.trainings = [Training(**raw) for raw in json.loads(self._file.read_text())] if self._file.is_file() else []

    def add(self, training: Training) -> None:
        self.trainings.append(training)
        text = json.dumps([asdict(t) for t in self.trainings], indent=1) + "\n"
        self._task.ledger.write_text(self._file.relative_to(self._task.ledger.root).as_posix(), text)

    @property
    def spent(self) -> float:
        """Device-seconds of all trainings."""
        return math.fsum(t.device_seconds for t in self.trainings)

    def forecast(self, rows: Mapping[int, int], devices: float) -> float | None:
        """Device-seconds of training members on so many rows each, as the search has seen so far, else as the ledger
        has; None where nothing is known yet.

        Args:
            devices: of one worker: GPUs, else CPU cores.
        """
        if not rows:
            return 0.0
        landed = [t for t in self.trainings if t.landed and t.rows]
        if landed:
            return sum(rows.values()) * math.fsum(t.device_seconds for t in landed) / sum(t.rows for t in landed)
        speed = measured_speed(self._task.ledger, self._task.keys, self._task.recipe)
        return None if speed is None else devices * math.fsum(speed.seconds(count, 1) for count in rows.values())


def plan_lines(pool: Pool, costs: Costs, devices: float) -> list[str]:
    """What the search may train, member by member, and what that will cost at least and at most."""
    space, settings = pool.task.space, pool.task.recipe.ratio_search
    low, high = min(map(len, space.sets)), max(map(len, space.sets))
    shares = ", ".join(f"{100 * share:.3g} %" for share in pool.shares)
    lines = [
        f"{len(space.sets)} sets of {low} to {high} members, of {len(space.used)} members; judged at {shares} of the "
        f"steps, one of {settings.eta} goes on; merged with {settings.weights} weights",
        f"  {'member':>12} {'steps':>7} {'rows':>9} {'judged at':>18} {'trained':>8}",
    ]
    for slot in space.used:
        task, batches = pool.work[slot]
        steps = ", ".join(str(pool.step(slot, rung)) for rung in range(len(pool.shares)))
        rows = sum(len(batch.rows) for batch in batches)
        lines.append(
            f"  {space.slots[slot].label:>12} {task.steps:>7,} {rows:>9,} {steps:>18} {pool.trained(slot):>8,}"
        )
    top = len(pool.shares) - 1
    left = {rung: {i: pool.rows(i, rung) for i in space.used if not pool.has(i, rung)} for rung in (0, top)}
    for rung, words in ((0, "all members to the first rung"), (top, "all members to the end, at most")):
        known = costs.forecast(left[rung], devices)
        told = "not known before one has been trained" if known is None else f"about {known:,.0f} device-seconds"
        lines.append(f"  {words}: {sum(left[rung].values()):,} rows, {told}")
    budget = settings.budget_seconds
    lines.append(f"  budget: {f'{budget:,.0f} device-seconds' if budget else 'none'}; spent so far: {costs.spent:,.0f}")
    return lines
