"""What one worker of the queue does: it holds one model, begins sets, encodes slices, and goes on with sets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from boom_ray.config import BoomError
from boom_ray.evaluate.board import Job, Need
from boom_ray.evaluate.paused import Ended, Paused
from boom_ray.evaluate.sets import EvalSet, precision_of
from boom_ray.evaluate.vectors import MtebEncoder, TokenCache, default_prompt, text_key
from boom_ray.stores.mirrors import fetch, send

if TYPE_CHECKING:
    from boom_ray.encoder import Encoder


@dataclass(frozen=True)
class ModelToScore:
    """A model directory, and the mteb ``ResultCache`` that its scores are kept in, under which name and revision.

    Defaults and meaning as in :func:`boom_ray.evaluate.score.evaluate`.
    """

    directory: str
    results: str
    name: str | None = None
    revision: str | None = None
    trained: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """All that is to be scored; a job names a model and a set by their numbers here.

    ``extra``, where given, is computed from each model besides; its job has the number of sets as its entry.
    """

    models: tuple[ModelToScore, ...]
    sets: tuple[EvalSet, ...]
    chunk_tokens: int
    extra: Callable[[Encoder], Any] | None = None


@dataclass(frozen=True)
class Done:
    """A job's score, or what ``extra`` returned."""

    value: Any


class Desk:
    """What the workers of one process share: the models that some of them hold, the tokens, and a turn at mteb, whose
    code was not written for two threads at once."""

    def __init__(self, work: Work) -> None:
        self.turn = threading.Lock()
        self._work = work
        self._loading = threading.Lock()
        self._models: WeakValueDictionary[int, Encoder] = WeakValueDictionary()
        self._tokens = TokenCache()

    def encoder(self, model: int) -> Encoder:
        """A model, loaded where no worker holds it."""
        from boom_ray.encoder import Encoder
        from boom_ray.evaluate.packing import pack

        with self._loading:
            held = self._models.get(model)
            if held is None:
                held = Encoder.load(self._work.models[model].directory)
                self._tokens.serve(held)
                pack(held.backbone, precision_of(self._work.sets))
                self._models[model] = held
            return held


class Worker:
    """Every method is one action of the board; only one runs at a time."""

    def __init__(self, work: Work, threads: int | None = None, desk: Desk | None = None) -> None:
        """``threads`` of torch; default: one for each core. ``desk``: shared with the workers of other threads."""
        self._work = work
        self._threads = threads
        self._desk = desk or Desk(work)
        self._held: tuple[int, Encoder] | None = None
        self._open: dict[Job, Paused] = {}
        self._use_threads()

    def _use_threads(self) -> None:
        """Torch and scikit-learn count threads for each thread by itself."""
        import torch
        from threadpoolctl import threadpool_limits

        if self._threads:
            torch.set_num_threads(self._threads)
            threadpool_limits(self._threads, user_api="openmp")

    def start(self, job: Job) -> Need | Done:
        """Begin a job, up to where it needs vectors.

        Raises:
            BoomError: the model or the set cannot be read.
        """
        encoder = self._encoder(job.model)
        if job.entry == len(self._work.sets):
            assert self._work.extra is not None
            return Done(self._work.extra(encoder))
        self._open[job] = Paused(lambda ask: self._score(job, encoder, ask))
        return self._after(job, self._open[job].begin)

    def resume(
        self, job: Job, positions: Sequence[np.ndarray], rows: Sequence[np.ndarray], *parts: np.ndarray
    ) -> Need | Done:
        """Go on with a job: ``parts[k][rows[k]]`` are the vectors of its texts ``positions[k]``."""
        count = sum(map(len, positions))
        width = parts[0].shape[1] if parts else int(self._encoder(job.model).backbone.config.hidden_size)
        vectors = np.empty((count, width), dtype=np.float32)
        for at, row, part in zip(positions, rows, parts, strict=True):
            vectors[at] = part[row]
        paused = self._open[job]
        return self._after(job, lambda: paused.answer(vectors))

    def encode(self, model: int, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Unit vectors, float32 [N, D], of N texts whose tokens lie one after the other in ``tokens``."""
        sequences = np.split(tokens, np.cumsum(lengths)[:-1])
        return self._encoder(model).encode_tokens(sequences, self._work.chunk_tokens)

    def _after(self, job: Job, go_on: Callable[[], Any]) -> Need | Done:
        try:
            with self._desk.turn:
                told = go_on()
        except BaseException:
            del self._open[job]
            raise
        if not isinstance(told, Ended):
            need: Need = told
            return need
        del self._open[job]
        return Done(told.value)

    def _encoder(self, model: int) -> Encoder:
        if self._held is None or self._held[0] != model:
            self._held = None  # before the next one is loaded
            self._held = model, self._desk.encoder(model)
        return self._held[1]

    def _score(self, job: Job, encoder: Encoder, ask: Callable[[Need], np.ndarray]) -> float:
        """Score a set with vectors that are asked for, and keep the result; returns the score."""
        from boom_ray.evaluate.results import cached, model_meta, open_cache
        from boom_ray.evaluate.score import run_set

        self._use_threads()
        if (folder := self._work.sets[job.entry].path) is not None:
            fetch(folder)

        def vectors(texts: Sequence[str], prompt: str) -> np.ndarray:
            read = [prompt + text for text in texts]
            return ask(Need.of([text_key(text) for text in read], encoder.tokenize(read)))

        model, entry = self._work.models[job.model], self._work.sets[job.entry]
        directory, cache = Path(model.directory), open_cache(model.results)
        meta = model_meta(directory, model.name, model.revision, model.trained)
        adapter = MtebEncoder(encoder, meta, self._work.chunk_tokens, default_prompt(directory), vectors)
        run_set(adapter, entry, cache)
        send(Path(model.results))
        score = cached(cache, meta, entry)
        if score is None:
            raise BoomError(f"the result of '{entry.name}' was written to {model.results} but cannot be read back.")
        return score
