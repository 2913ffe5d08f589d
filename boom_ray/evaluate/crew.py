"""The board's actions carried out, by whatever crew there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from boom_ray.config import BoomError
from boom_ray.evaluate.board import Action, Board, Encode, Job, Need, Resume, Start
from boom_ray.evaluate.worker import Done, Worker


@dataclass(frozen=True)
class Encoded:
    """A slice's vectors lie at ``place``."""

    place: Any
    size: int


@dataclass(frozen=True)
class Failed:
    error: Exception


@dataclass(frozen=True)
class Lost:
    """The worker died; nobody answers under its number any more, until it is ready again."""


@dataclass(frozen=True)
class Ready:
    """A worker may be given its first action."""


Outcome = Need | Done | Encoded | Failed | Lost | Ready


class Crew(Protocol):
    """Workers, numbered from 0."""

    count: int

    def submit(self, worker: int, action: Action) -> None:
        """Let a worker begin; it has nothing else to do."""

    def wait(self) -> Iterator[tuple[int, Action | None, Outcome]]:
        """What came of what, as soon as there is something."""

    def close(self) -> None:
        """End the workers."""


@dataclass(frozen=True)
class Told:
    """A job that has ended: its value or its error, when it began and ended, and the seconds that all workers together
    have spent on its model so far."""

    job: Job
    value: Any
    error: Exception | None
    began: float
    finished: float
    seconds: float


def drive(board: Board, crew: Crew, told: Callable[[Told], None]) -> None:
    """Carry out all jobs; ``told`` hears of each that has ended.

    Raises:
        BoomError: a mistake of the user's, which ends everything at once.
    """
    Driver(board, crew, told).run()


class Driver:
    """Hands actions out and notes what came of them."""

    def __init__(self, board: Board, crew: Crew, told: Callable[[Told], None]) -> None:
        self._board, self._crew, self._told = board, crew, told
        self._free: set[int] = set()
        self._since: dict[int, float] = {}
        self._began: dict[Job, float] = {}
        self._seconds: dict[int, float] = {}

    def run(self) -> None:
        while self._board.left:
            for worker in sorted(self._free):
                if action := self._board.next(worker):
                    self._free.remove(worker)
                    self._since[worker] = time.time()
                    self._crew.submit(worker, action)
            if len(self._free) == self._crew.count:
                raise RuntimeError(f"{self._board.left} jobs are left, but no worker can go on")
            for worker, action, outcome in self._crew.wait():
                self._note(worker, action, outcome)

    def _note(self, worker: int, action: Action | None, outcome: Outcome) -> None:
        if isinstance(outcome, Lost):
            self._board.lost(worker)
            return
        if action is not None:
            self._board.free(worker)
            model = action.part.model if isinstance(action, Encode) else action.job.model
            self._seconds[model] = self._seconds.get(model, 0.0) + time.time() - self._since[worker]
        self._free.add(worker)
        if isinstance(action, Start | Resume):
            self._note_job(worker, action.job, outcome)
        elif isinstance(action, Encode) and isinstance(outcome, Encoded):
            self._board.encoded(action.part, outcome.place, outcome.size)
        elif isinstance(outcome, Failed):
            raise outcome.error

    def _note_job(self, worker: int, job: Job, outcome: Outcome) -> None:
        self._began.setdefault(job, self._since[worker])
        if isinstance(outcome, Need):
            self._board.need(job, outcome)
            return
        error = outcome.error if isinstance(outcome, Failed) else None
        if isinstance(error, BoomError):
            raise error
        self._board.finished(job)
        value = outcome.value if isinstance(outcome, Done) else None
        self._told(Told(job, value, error, self._began[job], time.time(), self._seconds[job.model]))


def carry_out(worker: Worker, action: Action) -> Outcome:
    """One action of a worker in the process where it lives."""
    try:
        if isinstance(action, Start):
            return worker.start(action.job)
        if isinstance(action, Resume):
            return worker.resume(action.job, action.positions, action.rows, *action.places)
        vectors = worker.encode(action.part.model, *packed(action))
        return Encoded(vectors, vectors.nbytes)
    except Exception as error:  # told to whoever waits for the outcome
        return Failed(error)


def packed(action: Encode) -> tuple[np.ndarray, np.ndarray]:
    """A slice's tokens one after the other, and how many each text has."""
    tokens = action.part.tokens
    return np.concatenate(tokens), np.array([len(t) for t in tokens], dtype=np.int64)
