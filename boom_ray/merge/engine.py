"""Runs the kernels over pieces of tensors on threads; knows nothing of methods, recipes or directories."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.layout import Layout
from boom_ray.merge.members import CODES, Members
from boom_ray.merge.shards import Maps

PIECE = 1 << 20  # elements per task; part of the result's definition, because sums are taken per piece first


def load_kernels() -> ModuleType:
    """The compiled kernels, or their numpy twins where numba is not installed."""
    try:
        from boom_ray.merge import kernels
    except ImportError:
        from boom_ray.merge import plain

        return plain
    return kernels


class Engine:
    """Open files, threads and kernels of one merge. Use as a context manager.

    Args:
        workers: threads, default one per usable core; they hold no interpreter lock while they compute, read or write.
        mapped: read through memory mappings (fastest, pages count as shared cache) instead of ``pread``.
    """

    def __init__(self, members: Members, workers: int | None = None, mapped: bool = False) -> None:
        self.members = members
        self.mapped = mapped
        self.kernels = load_kernels()
        self._maps = Maps()
        self._sinks: dict[Path, int] = {}
        self._workers = workers or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._workers) if self._workers > 1 else None

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
            BoomError: a file cannot be read to its end; NaN or infinite elements (tensor, member and count).
        """
        base = len(self.members.checkpoints) - 1 if self.members.has_base else -1
        tables = {name: self.members.sources(name, self._maps, self.mapped) for name in names}

        def piece(task: tuple[str, int, int]) -> np.ndarray:
            name, start, count = task
            out = np.empty(len(pairs))
            self._read_ok(name, self.kernels.gram_piece(tables[name], pairs, base, start, count, out))
            return out

        tasks = [task for name in names for task in self.pieces(name)]
        parts: dict[str, list[np.ndarray]] = {name: [np.zeros(len(pairs))] for name in names}
        for task, part in zip(tasks, self.map(piece, tasks), strict=True):
            parts[task[0]].append(part)
        sums = {name: _sum(parts[name]) for name in names}
        for name, total in sums.items():
            if not np.isfinite(total).all():
                self.refuse_nonfinite(name)
                raise BoomError(
                    f"tensor '{name}': the members' inner products overflow float64. They are no trained weights."
                )
        return sums

    def combine(self, chosen: Mapping[str, np.ndarray], layout: Layout, directory: Path) -> None:
        """Write Σ c_k t_k of every tensor in ``chosen`` (coefficients over members and base) at its place.

        Raises:
            BoomError: read or write errors; results that are NaN or infinite (tensor and count).
        """

        def piece(task: tuple[str, int, int]) -> int:
            name, start, count = task
            sources, values = active(tables[name], chosen[name])
            wrong = self.kernels.combine_piece(sources, values, sinks[name], start, count)
            return self._written_ok(name, wrong, layout)

        tables = {name: self.members.sources(name, self._maps, self.mapped) for name in chosen}
        sinks = {name: self._sink(layout, directory, name) for name in chosen}
        tasks = [task for name in chosen for task in self.pieces(name)]
        wrong: dict[str, int] = {}
        for (name, _, _), count in zip(tasks, self.map(piece, tasks), strict=True):
            wrong[name] = wrong.get(name, 0) + count
        for name, count in wrong.items():
            if count:
                self.refuse_nonfinite(name)
                raise BoomError(
                    f"tensor '{name}': {count} results are too large for {layout.tensors[name].dtype}. "
                    f"Lower the merge weights or the scale, or choose out_dtype: float32."
                )

    def combine_into(self, name: str, values: np.ndarray) -> np.ndarray:
        """Σ c_k t_k of one tensor as a new float32 array in its shape: the same bits that :meth:`combine` writes."""
        out = np.empty(self.members.floats[name], np.float32)
        table = self.members.sources(name, self._maps, self.mapped)
        sources, factors = active(table, np.asarray(values, np.float64))
        sink = np.array([out.ctypes.data, 0, 0, CODES["F32"]], np.int64)

        def piece(task: tuple[str, int, int]) -> int:
            return self._read_ok(name, self.kernels.combine_piece(sources, factors, sink, task[1], task[2]))

        if sum(self.map(piece, list(self.pieces(name)))):
            self.refuse_nonfinite(name)
            raise BoomError(
                f"tensor '{name}': results are too large for float32. Lower the merge weights or the scale."
            )
        return out.reshape(self.members.rows[name][0].shape)

    def flush(self) -> None:
        """Bring what has been written to the disk."""
        for descriptor in self._sinks.values():
            os.fdatasync(descriptor)

    def pieces(self, name: str) -> Iterable[tuple[str, int, int]]:
        """Tasks (name, start, count) that cover a tensor."""
        size = self.members.floats[name]
        return [(name, start, min(PIECE, size - start)) for start in range(0, size, PIECE)]

    def map(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[Any]:
        """Results in the order of ``tasks``; on threads where there are several."""
        return map(function, tasks) if self._pool is None else self._pool.map(function, tasks)

    def refuse_nonfinite(self, name: str) -> None:
        """Raise for the first member whose tensor holds NaN or infinite elements; return when none does."""
        table = self.members.sources(name, self._maps, self.mapped)
        for k, source in enumerate(table):
            counts = [self.kernels.count_nonfinite(source, start, count) for _, start, count in self.pieces(name)]
            if any(count < 0 for count in counts):
                self._read_ok(name, -1 - k)
            if sum(counts):
                raise BoomError(
                    f"{self.members.where(name, k)} has {sum(counts)} NaN or infinite elements. "
                    f"That member is broken: train it again or leave it out."
                )

    def _sink(self, layout: Layout, directory: Path, name: str) -> np.ndarray:
        tensor = layout.tensors[name]
        path = directory / tensor.file
        if path not in self._sinks:
            self._sinks[path] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        return np.array([0, self._sinks[path], tensor.offset, CODES[tensor.dtype]], np.int64)

    def _read_ok(self, name: str, status: int) -> int:
        if status >= 0:
            return status
        raise BoomError(
            f"{self.members.where(name, -1 - status)} cannot be read to its end. The file was cut or the disk fails."
        )

    def _written_ok(self, name: str, status: int, layout: Layout) -> int:
        if status == self.kernels.WRITE_FAILED:
            tensor = layout.tensors[name]
            raise BoomError(
                f"tensor '{name}' ({tensor.bytes} bytes) cannot be written to {tensor.file}. Is the disk full?"
            )
        return self._read_ok(name, status)


def active(sources: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out vectors with coefficient zero: not read, and a lone coefficient 1 keeps even the sign of zero."""
    kept = np.flatnonzero(values)
    kept = kept if len(kept) else np.array([0])
    return np.ascontiguousarray(sources[kept]), np.ascontiguousarray(values[kept], np.float64)


def _sum(parts: list[np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        if not np.isfinite(parts).all():
            return np.full(len(parts[0]), np.nan)
    return np.array([math.fsum(column) for column in np.array(parts).T])
