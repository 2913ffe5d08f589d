"""The ensemble: one Ray Train run per member, as many at once as there is room for.

:func:`boom_ray.placement.place` says in which order and how wide. A member starts as soon as its workers fit beside
those that run: Ray places a gang whole or not at all, and no gang is asked for that does not fit, so a freed bundle is
taken at once and no two gangs wait for each other's halves; the next member's controller stands ready behind a
:class:`~boom_ray.train.gate.Gate`. What failed is started again from its newest checkpoint,
as :mod:`boom_ray.failures` says; Ray Train's own retries are off, because they know no checkpoint of ours.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from boom_ray import records
from boom_ray.cluster import interrupts
from boom_ray.cluster.autoscale import PATIENCE, node_resources, wish, workers_ahead
from boom_ray.cluster.orphans import release_orphans
from boom_ray.config import BoomError
from boom_ray.data.feed import rank_data_config, rank_datasets
from boom_ray.data.schedule import Batch
from boom_ray.exit_codes import Infrastructure
from boom_ray.failures import Failure, again
from boom_ray.ledger import Ledger
from boom_ray.resources import Bundle, Placement, fitting
from boom_ray.train import checkpoint
from boom_ray.train.causes import failure_of
from boom_ray.train.gate import Gate
from boom_ray.train.member import MemberTask
from boom_ray.train.rendezvous import Rendezvous
from boom_ray.train.watchdog import Watchdog
from boom_ray.train.word import Word
from boom_ray.train.worker import train_member

_LOOK = 1.0  # seconds between two looks at members and nodes
_STARTS = 3  # times that Ray may fail to bring up one gang before that counts as a failure of the member

Work = Mapping[str, tuple[MemberTask, Sequence[Batch]]]


@dataclass(frozen=True)
class Room:
    """What the ensemble may take: what each worker takes, members at once, workers that the plan counts on (an
    autoscaler is asked for those that are not there), seconds without a step after which a member is hung."""

    bundle: Bundle
    max_concurrent: int | None = None
    slots: int = 0
    hang_seconds: float | None = None


@dataclass(frozen=True)
class Watcher:
    """Who is told: ``tick`` about once a second, ``landed`` after each member that is committed, ``held`` a
    member's name and for how many seconds it had its workers, landed or failed, ``say`` a line."""

    tick: Callable[[], None] = lambda: None
    landed: Callable[[], None] = lambda: None
    held: Callable[[str, float], None] = lambda name, seconds: None
    say: Callable[[str], None] = lambda line: None


def next_to_start(
    waiting: Sequence[Placement], running: Sequence[Placement], slots: int, most: int | None
) -> Placement | None:
    """The member that starts now, if one does: the first in the plan's order, once it fits.

    No narrow one overtakes, else a wide one might wait for ever; only one wider than the whole cluster, which has lost
    a node, lets the others pass.
    """
    first = next((p for p in waiting if p.width <= slots), None)
    free = slots - sum(p.width for p in running)
    return first if first and first.width <= free and len(running) < (most or len(waiting) + len(running)) else None


def train_ensemble(
    ledger: Ledger, work: Work, placements: Sequence[Placement], room: Room, watcher: Watcher = Watcher()
) -> dict[str, Failure]:
    """Train every member of ``work`` (its task and its global batches); returns when all have ended.

    Interrupted, members write a checkpoint, if they can in the time that is left, before the interrupt goes on.

    Returns: the members that failed for good, by name; the others are in the ledger.

    Raises:
        Infrastructure: what is left of the cluster has no room for the members that wait, and no node came.
    """
    ensemble = _Ensemble(ledger, work, placements, room, watcher)
    try:
        with wish(room.bundle) as ask:
            while ensemble.waiting or ensemble.running:
                ensemble.start()
                ask(ensemble.workers_to_come())
                ended = ensemble.wait()
                watcher.tick()
                ensemble.take(ended)
    except KeyboardInterrupt:
        ensemble.stop(interrupts.grace())
        raise
    return ensemble.final


@dataclass(frozen=True)
class _Start:
    """One start of a member, which runs in a thread; the result is the step that it began at."""

    placement: Placement
    gate: Gate
    future: Future[int]


class _Ensemble:
    """Members that wait, the first of them behind its gate, and those that run."""

    def __init__(
        self, ledger: Ledger, work: Work, placements: Sequence[Placement], room: Room, watcher: Watcher
    ) -> None:
        self._ledger, self._work, self._room, self._watcher = ledger, work, room, watcher
        self._word = Word()
        self._ahead: _Start | None = None
        self._opened: dict[str, float] = {}
        self._busy = time.monotonic()
        self._failures: dict[str, list[Failure]] = {p.name: [] for p in placements}
        self.waiting = list(placements)
        self.running: list[_Start] = []
        self.final: dict[str, Failure] = {}

    def start(self) -> None:
        """Let in what fits now, and bring up who comes next.

        Raises:
            Infrastructure: nothing has run for a long while, because nothing fits.
        """
        here = fitting(node_resources(), self._room.bundle) if self.waiting else 0
        most = self._room.max_concurrent
        while placement := next_to_start(self.waiting, [s.placement for s in self.running], here, most):
            begun, self._ahead = self._taken_from_ahead(placement)
            self.waiting.remove(placement)
            self.running.append(begun)
            self._opened[placement.name] = time.monotonic()
            begun.gate.open()
        if self.waiting and self._ahead is None:
            self._ahead = self._begin(self.waiting[0])
        if self.running:
            self._busy = time.monotonic()
        elif time.monotonic() - self._busy > PATIENCE:
            raise _no_room(self.waiting, here)

    def workers_to_come(self) -> int:
        """Workers that an autoscaler has to make room for, beside those whose controllers ask themselves."""
        begun = [s.placement for s in (*self.running, self._ahead) if s]
        waiting = [p.width for p in self.waiting if p not in begun]
        return workers_ahead(waiting, [p.width for p in begun], self._room.slots)

    def _taken_from_ahead(self, placement: Placement) -> tuple[_Start, _Start | None]:
        """The start of a member, and who is ahead from now on."""
        if self._ahead and self._ahead.placement == placement:
            return self._ahead, None
        return self._begin(placement), self._ahead

    def _begin(self, placement: Placement) -> _Start:
        task, batches = self._work[placement.name]
        gate = Gate(self._ledger.scratch("gates") / f"{task.key.name}-{secrets.token_hex(4)}")
        callbacks: list[Any] = [gate]
        if self._room.hang_seconds is not None:
            folder = f"scratch/members/{task.key.name}"
            callbacks.append(Watchdog(task.name, task.root, folder, self._room.hang_seconds))
        gang = _Gang(placement.width, self._room.bundle, callbacks, self._word)
        future = _in_thread(placement.name, lambda: _train_one(self._ledger, task, batches, gang))
        return _Start(placement, gate, future)

    def wait(self) -> list[_Start]:
        """Those that have ended, after a moment."""
        starts = [*self.running, *([self._ahead] if self._ahead else [])]
        wait([s.future for s in starts], timeout=_LOOK, return_when=FIRST_COMPLETED)
        return [s for s in starts if s.future.done()]

    def take(self, ended: Iterable[_Start]) -> None:
        """Note who has landed and who has failed; what is worth it waits for its next start before all others."""
        for start in ended:
            start.gate.remove()
            if start is self._ahead:
                self._ahead = None
                self.waiting.remove(start.placement)
            else:
                self.running.remove(start)
            if error := start.future.exception():
                self._take_failure(start.placement, error)
            else:
                self._take_landed(start)
        if any(self._failures.values()):
            release_orphans()

    def _take_landed(self, start: _Start) -> None:
        name = start.placement.name
        task, seconds = self._work[name][0], time.monotonic() - self._opened[name]
        if start.future.result() == 0 and task.lands == task.key:  # of a part of its steps the time says nothing
            records.note_seconds(self._ledger, task.key, seconds)
        self._watcher.held(name, seconds)
        self._watcher.landed()

    def _take_failure(self, placement: Placement, error: BaseException) -> None:
        name = placement.name
        if name in self._opened:
            self._watcher.held(name, time.monotonic() - self._opened[name])
        failure = failure_of(error, *self._work[name])
        self._failures[name].append(failure)
        if again(self._failures[name]):
            self.waiting.insert(0, placement)  # its workers have just been freed
            self._watcher.say(f"  {name}, {failure}. It goes on from its last checkpoint.")
        else:
            self.final[name] = failure
            self._watcher.say(f"  {name} has failed for good: {failure}")

    def stop(self, seconds: float) -> None:
        """Have the members that run write a checkpoint and end."""
        if seconds and self.running:
            self._watcher.say(f"  stopping: {len(self.running)} members write a checkpoint, {seconds:.0f} s at most")
            self._word.say()
            wait([start.future for start in self.running], timeout=seconds)
            self._word.forget()


def _no_room(waiting: Sequence[Placement], here: int) -> Infrastructure:
    wide = ", ".join(f"{p.name} on {p.width}" for p in waiting)
    return Infrastructure(
        f"no node with room came in {PATIENCE / 60:.0f} minutes: {here} workers fit now, but {wide} wait. Run again on "
        f"a larger cluster, or with --replan, which gives them another width."
    )


def _in_thread(name: str, work: Callable[[], int]) -> Future[int]:
    """Do it in a thread that no interpreter waits for at its end: after an interrupt a ``fit()`` may never come back,
    because it asks a Ray that is gone."""
    future: Future[int] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=do, name=name, daemon=True).start()
    return future


_START = threading.Lock()


@dataclass(frozen=True)
class _Gang:
    """What a member's workers get: how many they are, what each takes, who looks after them, whom they listen to."""

    width: int
    bundle: Bundle
    callbacks: list[Any]
    word: Word


def _train_one(ledger: Ledger, task: MemberTask, batches: Sequence[Batch], gang: _Gang) -> int:
    """One start of a member, from its newest checkpoint on; returns the step of that, 0 where there was none."""
    chosen = records.frozen(ledger, task.key)
    if chosen is None:
        chosen = records.Frozen(gang.width, task.threads)
        records.freeze(ledger, task.key, chosen)
    found = checkpoint.newest(task)
    start = found.step if found else 0
    task = replace(task, threads=chosen.threads, start=start)
    with _START:  # building datasets touches the driver's global Ray Data context
        trainer = TorchTrainer(
            train_member,
            train_loop_config={"task": task, "word": gang.word},
            torch_config=Rendezvous(backend="nccl" if gang.bundle.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=chosen.width, use_gpu=gang.bundle.gpus > 0, resources_per_worker=gang.bundle.per_worker
            ),
            run_config=RunConfig(
                name=task.key.name,
                storage_path=str(ledger.scratch("ray_train").resolve()),
                failure_config=FailureConfig(
                    max_failures=0, max_preemption_failures=0, controller_failure_limit=_STARTS
                ),
                callbacks=gang.callbacks,
            ),
            datasets=rank_datasets(task.due(batches), chosen.width, start),
            dataset_config=rank_data_config(),
        )
    trainer.fit()
    if not ledger.has(task.lands):
        raise BoomError(f"{task.name}: training ended without a committed member.")
    return start
