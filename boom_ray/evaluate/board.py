"""Who does what next when sets x models are scored by several workers. Pure bookkeeping: no ray, no mteb, no model.

A worker that scores a set stops where mteb asks for vectors. What is new among those texts is sorted by length and cut
into slices, which any worker that holds the model encodes; the set goes on where it stopped once all its vectors are
there. So a large corpus is split over all workers, and while mteb's own arithmetic keeps one of them busy the others
encode. A text that several sets of a model share is in one slice only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_OPEN = 2  # sets that one worker has begun at once: while one waits for vectors it begins the next
_TURNS = 3  # slices per worker that a request for vectors is cut into, as far as their size allows
_CHUNKS = 16  # chunks of tokens in a slice at most
_VECTOR_BYTES = 4 << 30  # vectors of one model that are kept for sets to come
_STARTS = 3  # of one set, when workers die of it


@dataclass(frozen=True)
class Job:
    """One model on one set, by their numbers."""

    model: int
    entry: int


@dataclass(frozen=True)
class Need:
    """N texts that a job waits for the vectors of.

    Attributes:
        keys: 16 bytes for each text, one after the other.
        tokens: of all texts, one after the other; lengths: how many each has, [N].
    """

    keys: bytes
    tokens: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, keys: Sequence[bytes], tokens: Sequence[np.ndarray]) -> Need:
        lengths = np.array([len(t) for t in tokens], dtype=np.int64)
        return cls(b"".join(keys), np.concatenate([np.zeros(0, np.int32), *tokens]), lengths)

    def texts(self) -> list[tuple[bytes, np.ndarray]]:
        """Key and tokens of each text."""
        ends = np.cumsum(self.lengths).tolist()
        starts = [0, *ends[:-1]]
        cut = zip(starts, ends, strict=True) if ends else ()
        return [(self.keys[16 * i : 16 * i + 16], self.tokens[start:end]) for i, (start, end) in enumerate(cut)]


@dataclass(frozen=True)
class Slice:
    """Texts of one model that one worker encodes in one go."""

    number: int
    model: int
    keys: tuple[bytes, ...]
    tokens: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Start:
    job: Job


@dataclass(frozen=True)
class Encode:
    part: Slice


@dataclass(frozen=True)
class Resume:
    """Go on with a job: row ``rows[i]`` of what lies at ``places[k]`` is the vector of text ``positions[k][i]``."""

    job: Job
    places: tuple[Any, ...]
    positions: tuple[np.ndarray, ...]
    rows: tuple[np.ndarray, ...]


Action = Start | Encode | Resume


@dataclass
class _Open:
    """A job that has been begun; ``wanted`` says in which slice and row each text of its need is."""

    worker: int
    wanted: list[tuple[int, int]] | None = None
    missing: set[int] = field(default_factory=set)


@dataclass
class _Model:
    """What is left to do with one model, and its vectors: in which slice and row a text is, where a slice lies."""

    pending: deque[Job] = field(default_factory=deque)
    slices: deque[Slice] = field(default_factory=deque)
    known: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    places: dict[int, tuple[Any, tuple[bytes, ...], int]] = field(default_factory=dict)  # oldest first
    left: int = 0


class TooManyStarts(RuntimeError):
    """Workers died of a job again and again."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job} was begun {_STARTS} times, and its worker died each time")
        self.job = job


class Board:
    """Jobs, slices and vectors of all models."""

    def __init__(
        self, costs: Mapping[Job, float], workers: int, chunk_tokens: int, files: Mapping[int, str] | None = None
    ) -> None:
        """
        Args:
            costs: how long each job takes, in any unit; the longest of a model begin first.
            files: by entry, the file that its result goes into, where several entries share one: of those that do,
                one at a time is open.
        """
        self._files = files or {}
        self._costs, self._workers, self._chunk_tokens = dict(costs), workers, chunk_tokens
        self._models: dict[int, _Model] = {}
        for job in sorted(costs, key=lambda job: -costs[job]):
            model = self._models.setdefault(job.model, _Model())
            model.pending.append(job)
            model.left += 1
        self._open: dict[Job, _Open] = {}
        self._running: dict[int, Action] = {}
        self._resident: dict[int, int] = {}
        self._starts: dict[Job, int] = {}
        self._numbers = 0

    @property
    def left(self) -> int:
        """Jobs that are not finished."""
        return sum(model.left for model in self._models.values())

    def next(self, worker: int) -> Action | None:
        """What a free worker does now; None: there is nothing for it at the moment."""
        if worker in self._running:
            raise ValueError(f"worker {worker} is not free")
        action = self._resumable(worker) or self._of_resident(worker) or self._of_another(worker)
        if action:
            self._running[worker] = action
        return action

    def free(self, worker: int) -> None:
        """The worker has ended what :meth:`next` gave it. What came of it is told by one of the next three."""
        del self._running[worker]

    def need(self, job: Job, need: Need) -> None:
        """A job that was begun waits for vectors."""
        model, opened = self._models[job.model], self._open[job]
        texts = need.texts()
        new = {key: tokens for key, tokens in texts if key not in model.known}
        for part in self._cut(job.model, new):
            model.slices.append(part)
            model.known.update((key, (part.number, row)) for row, key in enumerate(part.keys))
        opened.wanted = [model.known[key] for key, _ in texts]
        opened.missing = {number for number, _ in opened.wanted} - model.places.keys()

    def encoded(self, part: Slice, place: Any, size: int) -> None:
        """A slice's vectors, ``size`` bytes, lie at ``place``."""
        model = self._models[part.model]
        if not model.left:
            return
        model.places[part.number] = (place, part.keys, size)
        for opened in self._open.values():
            opened.missing.discard(part.number)
        self._forget(part.model)

    def finished(self, job: Job) -> None:
        """A job has its result, or has failed for good."""
        del self._open[job]
        model = self._models[job.model]
        model.left -= 1
        if not model.left:
            self._models[job.model] = _Model()

    def lost(self, worker: int) -> None:
        """A worker died: what it had begun is begun again, by whoever is free.

        Raises:
            TooManyStarts: it has died of one job again and again.
        """
        action = self._running.pop(worker, None)
        self._resident.pop(worker, None)
        if isinstance(action, Encode):
            self._models[action.part.model].slices.appendleft(action.part)
        for job in [job for job, opened in self._open.items() if opened.worker == worker]:
            del self._open[job]
            if self._starts[job] >= _STARTS:
                raise TooManyStarts(job)
            self._models[job.model].pending.appendleft(job)

    def _resumable(self, worker: int) -> Resume | None:
        for job, opened in self._open.items():
            if opened.worker == worker and opened.wanted is not None and not opened.missing:
                return self._resume(job, opened)
        return None

    def _resume(self, job: Job, opened: _Open) -> Resume:
        assert opened.wanted is not None
        places = self._models[job.model].places
        wanted = np.array(opened.wanted, dtype=np.int64).reshape(-1, 2)
        numbers = np.unique(wanted[:, 0])
        positions = tuple(np.flatnonzero(wanted[:, 0] == number) for number in numbers)
        opened.wanted = None
        rows = tuple(wanted[at, 1] for at in positions)
        return Resume(job, tuple(places[int(number)][0] for number in numbers), positions, rows)

    def _of_resident(self, worker: int) -> Action | None:
        model = self._models.get(self._resident.get(worker, -1))
        if model and model.slices:
            return Encode(model.slices.popleft())
        if model and self._begun(worker) < _OPEN:
            job = next((job for job in model.pending if not self._file_is_open(job)), None)
            if job:
                model.pending.remove(job)
                return self._start(worker, job)
        return None

    def _file_is_open(self, job: Job) -> bool:
        file = self._files.get(job.entry)
        return file is not None and any(
            other.model == job.model and self._files.get(other.entry) == file for other in self._open
        )

    def _of_another(self, worker: int) -> Action | None:
        """Change to the model that has the most work for each worker that holds it, unless something is begun here."""
        busy = [number for number, model in self._models.items() if model.slices or model.pending]
        if not busy or self._begun(worker):
            return None
        holders = list(self._resident.values())
        chosen = max(busy, key=lambda number: self._work(number) / (1 + holders.count(number)))
        if self._resident.get(worker) == chosen:
            return None
        self._resident[worker] = chosen
        return self._of_resident(worker)

    def _work(self, number: int) -> float:
        model = self._models[number]
        return sum(self._costs[job] for job in model.pending) + len(model.slices)

    def _begun(self, worker: int) -> int:
        return sum(opened.worker == worker for opened in self._open.values())

    def _start(self, worker: int, job: Job) -> Start:
        self._open[job] = _Open(worker)
        self._starts[job] = self._starts.get(job, 0) + 1
        return Start(job)

    def _cut(self, model: int, new: Mapping[bytes, np.ndarray]) -> Iterable[Slice]:
        """New texts, longest first, in slices of about equal tokens."""
        keys = sorted(new, key=lambda key: -len(new[key]))
        total = sum(len(tokens) for tokens in new.values())
        size = min(max(total / (_TURNS * self._workers), self._chunk_tokens), _CHUNKS * self._chunk_tokens)
        start, tokens = 0, 0
        for place, key in enumerate(keys, start=1):
            tokens += len(new[key])
            if tokens >= size or place == len(keys):
                part = tuple(keys[start:place])
                yield Slice(self._numbers, model, part, tuple(new[key] for key in part))
                self._numbers += 1
                start, tokens = place, 0

    def _forget(self, number: int) -> None:
        """Drop the oldest vectors of a model where they are too many and no job waits for them."""
        model = self._models[number]
        total = sum(size for *_, size in model.places.values())
        if total <= _VECTOR_BYTES:
            return
        used = {n for job, o in self._open.items() if job.model == number for n, _ in o.wanted or ()}
        for old in [n for n in model.places if n not in used]:
            if total <= _VECTOR_BYTES:
                break
            _, keys, size = model.places.pop(old)
            total -= size
            for key in keys:
                del model.known[key]
