"""Many like pieces of work on actors that hold something heavy, such as a model; each piece writes a file of its own.

Through Ray Data, as :mod:`boom_ray.data.workers`. When actors are lost (a node was taken away), a new pool goes on with
what is missing. Ray Data's own restarts would do that in place, but warn on every start and every Ctrl-C.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from boom_ray.config import BoomError
from boom_ray.data.workers import Files, raise_told, told
from boom_ray.resources import Bundle
from boom_ray.stores.mirrors import fetch

_BLOCKS = 64  # parts that actors ask for: enough to share unequal pieces evenly
_LOSSES = 3  # pools lost one after the other without a piece done

Make = Callable[[], Callable[[Any], None]]


class Unit(Protocol):
    """A piece of work; it is done when the file is there. ``reads`` and ``writes``: as in ``workers.Files``."""

    @property
    def target(self) -> Path: ...

    @property
    def reads(self) -> Iterable[Path]: ...

    @property
    def writes(self) -> Iterable[Path]: ...


_FILES = Files(lambda unit: unit.reads, lambda unit: unit.writes)


@dataclass(frozen=True)
class Pool:
    """How many actors at once, and what each takes."""

    actors: int
    bundle: Bundle


def on_actors(make: Make, units: Sequence[Unit], pool: Pool, tick: Callable[[int, int], None]) -> None:
    """Do the units that are not done yet with what ``make()`` gives in each actor; ``tick(done, all)`` meanwhile.

    Raises:
        BoomError: what ``make`` or its work raised.
        RayError: actors are lost again and again.
    """
    from ray.exceptions import RayError, RayTaskError

    losses, todo = 0, _undone(units)
    while todo:
        try:
            for done in _stream(make, todo, pool):
                tick(len(units) - len(todo) + done, len(units))
            return
        except RayTaskError:
            raise  # a fault of the work itself: it would come again
        except RayError:
            before, todo = len(todo), _undone(units)
            losses = losses + 1 if len(todo) == before else 0
            if losses == _LOSSES:
                raise


def _undone(units: Sequence[Unit]) -> list[Unit]:
    return [unit for unit in units if not fetch(unit.target).is_file()]


class _Actor:
    """Does units; a user's mistake comes back as a value, because Ray wraps what is raised."""

    def __init__(self, make: Make, units: Sequence[Unit]) -> None:
        self._make, self._units = make, units
        self._work: Callable[[Any], None] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self._work = self._work or self._make()
            _FILES.around(self._work, self._units[row["unit"]])
        except BoomError as error:
            return told(error)
        return told()


def _stream(make: Make, units: Sequence[Unit], pool: Pool) -> Iterator[int]:
    """How many units are done, after each."""
    import ray.data

    actors = min(pool.actors, len(units))
    blocks = np.array_split(np.arange(len(units)), min(len(units), max(_BLOCKS, 4 * actors)))
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        stream = ray.data.from_arrow([pa.table({"unit": block}) for block in blocks])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray 2.60 has no other way to say max_restarts
            stream = stream.map(
                _Actor,
                fn_constructor_args=(make, units),
                compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
                num_cpus=pool.bundle.cpus,
                num_gpus=pool.bundle.gpus,
                ray_remote_args_fn=_without_restarts,
            )
        for done, row in enumerate(stream.iter_rows(), start=1):
            raise_told(row)
            yield done


def _without_restarts() -> dict[str, int]:
    return {"max_restarts": 0, "max_task_retries": 0}
