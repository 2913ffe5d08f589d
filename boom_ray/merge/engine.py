"""Runs kernels over pieces of tensors, on threads, inside a window of memory; knows no methods and no recipes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.headers import ITEM_BYTES
from boom_ray.merge.layout import Layout
from boom_ray.merge.members import CODES, Members
from boom_ray.merge.shards import Maps

PIECE = 1 << 19  # elements per task; part of the result's definition, because sums are taken per piece first
Task = tuple[str, int, int]  # tensor, first element, number of elements
Result = TypeVar("Result")


def load_kernels() -> ModuleType:
    """The compiled kernels, or their numpy twins where numba is not installed."""
    try:
        from boom_ray.merge import kernels
    except ImportError:
        from boom_ray.merge import plain

        return plain
    return kernels


class Engine:
    """Mapped members, threads and kernels of one merge. Use as a context manager.

    Args:
        workers: threads, default one per usable core; they hold no interpreter lock while they compute or write.
        window: bytes of the members that are mapped into memory at once; None: they stay mapped (fastest).
    """

    def __init__(self, members: Members, workers: int | None = None, window: int | None = None) -> None:
        self.members = members
        self.kernels = load_kernels()
        self.workers = workers or len(os.sched_getaffinity(0))
        self.window = window
        self._maps = Maps()
        self._sinks: dict[Path, int] = {}
        self._pool = ThreadPoolExecutor(self.workers) if self.workers > 1 else None
        least = self.workers * max((self.bytes((name, 0, PIECE)) for name in members.floats), default=0)
        if window is not None and window < least:
            raise BoomError(
                f"{self.workers} workers need a memory of at least {-(-least // 1_000_000)} MB for these members, "
                f"{window // 1_000_000} MB are allowed. Raise --memory or lower --workers."
            )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for descriptor in self._sinks.values():
            os.close(descriptor)
        self._maps.close()

    def gram(self, names: Sequence[str], pairs: np.ndarray) -> dict[str, np.ndarray]:
        """Inner products (P,) of the given vector pairs for every tensor.

        Raises:
            BoomError: NaN or infinite elements (tensor, member and count).
        """
        base = len(self.members.checkpoints) - 1 if self.members.has_base else -1
        tables = {name: self.sources(name) for name in names}

        def piece(task: Task) -> np.ndarray:
            out = np.empty(len(pairs))
            self.kernels.gram_piece(tables[task[0]], pairs, base, task[1], task[2], out)
            return out

        parts: dict[str, list[np.ndarray]] = {name: [np.zeros(len(pairs))] for name in names}
        for (name, _, _), part in self.run(piece, self.tasks(names)):
            parts[name].append(part)
        sums = {name: _sum(parts[name]) for name in names}
        for name, total in sums.items():
            if not np.isfinite(total).all():
                self.refuse_nonfinite(name)
                raise BoomError(
                    f"tensor '{name}': inner products overflow float64. Its weights are not those of a model."
                )
        return sums

    def combine(self, chosen: Mapping[str, np.ndarray], layout: Layout, directory: Path) -> None:
        """Write Σ c_k t_k of every tensor in ``chosen`` (coefficients over members and base) at its place.

        Raises:
            BoomError: write errors; results that are NaN or infinite (tensor and count).
        """
        terms = {name: self.terms(name, values) for name, values in chosen.items()}
        sinks = {name: self.sink(layout, directory, name) for name in chosen}

        def piece(task: Task) -> int:
            sources, factors = terms[task[0]]
            return self.kernels.combine_piece(sources, factors, sinks[task[0]], task[1], task[2])

        self.check_written(self.run(piece, self.tasks(list(chosen))), layout)

    def check_written(self, results: Iterator[tuple[Task, int]], layout: Layout) -> None:
        """Raise where a piece could not be written or holds results (their count) that are NaN or infinite."""
        wrong: dict[str, int] = {}
        for (name, _, _), count in results:
            if count == self.kernels.WRITE_FAILED:
                raise BoomError(f"tensor '{name}' cannot be written to {layout.tensors[name].file}. Is the disk full?")
            wrong[name] = wrong.get(name, 0) + count
        for name in (name for name, count in wrong.items() if count):
            self.refuse_nonfinite(name)
            raise BoomError(
                f"tensor '{name}': {wrong[name]} results are too large for {layout.tensors[name].dtype}. "
                f"Lower the merge weights or the scale, or choose out_dtype: float32."
            )

    def combine_into(self, name: str, values: np.ndarray) -> np.ndarray:
        """Σ c_k t_k of one tensor as a new float32 array in its shape: the same bits that :meth:`combine` writes.

        Raises:
            BoomError: NaN or infinite weights or results.
        """
        out = np.empty(self.members.floats[name], np.float32)
        self.fill({name: values}, {name: (out.ctypes.data, "F32")})
        return out.reshape(self.members.rows[name][0].shape)

    def fill(self, chosen: Mapping[str, np.ndarray], targets: Mapping[str, tuple[int, str]]) -> None:
        """Write Σ c_k t_k of every tensor in ``chosen`` into memory: the bits that :meth:`combine` writes to files.

        Args:
            targets: address of the first element of each tensor's place and its stored type; the caller keeps it alive.

        Raises:
            BoomError: NaN or infinite weights or results.
        """
        terms = {name: self.terms(name, np.asarray(values, np.float64)) for name, values in chosen.items()}
        sinks = {name: np.array([at, 0, 0, CODES[kind]], np.int64) for name, (at, kind) in targets.items()}

        def piece(task: Task) -> int:
            sources, factors = terms[task[0]]
            return self.kernels.combine_piece(sources, factors, sinks[task[0]], task[1], task[2])

        for (name, _, _), wrong in self.run(piece, self.tasks(list(chosen))):
            if wrong:
                self.refuse_nonfinite(name)
                raise BoomError(
                    f"tensor '{name}': results are too large for {targets[name][1]}. Lower the merge weights or the "
                    f"scale."
                )

    def terms(self, name: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sources and coefficients of the sum, in the order of adding.

        Coefficient zero is left out: not read, and a lone coefficient 1 keeps even the sign of zero.
        """
        kept = sorted((int(k) for k in np.flatnonzero(values)), key=lambda k: float(values[k])) or [0]
        return np.ascontiguousarray(self.sources(name)[kept]), np.ascontiguousarray(values[kept], np.float64)

    def sources(self, name: str) -> np.ndarray:
        """Kernel rows (K, 2) of a tensor in all members and the base."""
        return self.members.sources(name, self._maps)

    def sink(self, layout: Layout, directory: Path, name: str) -> np.ndarray:
        """Kernel row of a tensor's place in the output files."""
        tensor = layout.tensors[name]
        path = directory / tensor.file
        if path not in self._sinks:
            self._sinks[path] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        return np.array([0, self._sinks[path], tensor.offset, CODES[tensor.dtype]], np.int64)

    def tasks(self, names: Sequence[str]) -> list[Task]:
        """Pieces that cover the tensors, in order."""
        sizes = self.members.floats
        return [(name, at, min(PIECE, sizes[name] - at)) for name in names for at in range(0, sizes[name], PIECE)]

    def bytes(self, task: Task) -> int:
        """Bytes of a piece in all members and the base."""
        return task[2] * sum(ITEM_BYTES[tensor.dtype] for tensor in self.members.rows[task[0]])

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        """Tasks with their results, in order; between batches that fill the window, its pages are let go."""
        batches = list(self._batches(tasks))
        for batch in batches:
            self._advise(batch, needed=True)
            results = map(function, batch) if self._pool is None else self._pool.map(function, batch)
            yield from zip(batch, results, strict=True)
            if len(batches) > 1:
                self.release(batch)

    def release(self, tasks: Sequence[Task]) -> None:
        """Let the pages of these pieces leave this process (not the system's cache), where a window is set."""
        if self.window is not None:
            self._advise(tasks, needed=False)

    def _batches(self, tasks: Sequence[Task]) -> Iterator[list[Task]]:
        batch: list[Task] = []
        held = 0
        for task in tasks:
            if batch and self.window is not None and held + self.bytes(task) > self.window:
                yield batch
                batch, held = [], 0
            batch.append(task)
            held += self.bytes(task)
        if batch:
            yield batch

    def _advise(self, tasks: Sequence[Task], needed: bool) -> None:
        """Announce or let go the byte ranges of consecutive pieces, one call per tensor and member."""
        ranges: dict[str, tuple[int, int]] = {}
        for name, start, count in tasks:
            first, _ = ranges.get(name, (start, 0))
            ranges[name] = (first, start + count)
        for name, (start, stop) in ranges.items():
            for checkpoint, tensor in zip(self.members.checkpoints, self.members.rows[name], strict=True):
                path, item = checkpoint.directory / tensor.file, ITEM_BYTES[tensor.dtype]
                if needed and os.stat(path).st_size < tensor.offset + tensor.bytes:
                    raise BoomError(f"{path} was cut while it was being merged. Restore it and merge again.")
                self._maps.advise(path, tensor.offset + start * item, tensor.offset + stop * item, needed)

    def refuse_nonfinite(self, name: str, vectors: Sequence[int] | None = None) -> None:
        """Raise for the first of these vectors (default all) whose tensor holds NaN or infinite elements.

        Raises:
            BoomError: names file, tensor and count.
        """
        table = self.sources(name)
        for k in range(len(table)) if vectors is None else vectors:

            def piece(task: Task, source: np.ndarray = table[k]) -> int:
                return self.kernels.count_nonfinite(source, task[1], task[2])

            count = sum(found for _, found in self.run(piece, self.tasks([name])))
            if count:
                raise BoomError(
                    f"{self.members.where(name, k)} has {count} NaN or infinite elements. "
                    f"That member is broken: train it again or leave it out."
                )

    def flush(self) -> None:
        """Bring what has been written to the disk."""
        for descriptor in self._sinks.values():
            os.fdatasync(descriptor)


def _sum(parts: list[np.ndarray]) -> np.ndarray:
    """Exact sum over pieces; NaN where a part is not finite."""
    if not np.isfinite(parts).all():
        return np.full(len(parts[0]), np.nan)
    return np.array([math.fsum(column) for column in np.array(parts).T])
