"""Carries out an elementwise method on one tensor, piece by piece: histogram passes, sums, and the pass that writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from boom_ray.merge import plain
from boom_ray.merge.elementwise import EVERYTHING, NOTHING, Cut, Elementwise, find_bin
from boom_ray.merge.engine import PIECE, Engine, Task

_BINS = 1 << 16
_BLOCK = 1 << 15  # elements of all members that numpy works on at once, in the second-level cache


@dataclass
class TensorPass:
    """One tensor of an engine's members under a method; every method below is one pass over it."""

    engine: Engine
    name: str
    method: Elementwise

    def __post_init__(self) -> None:
        self._sources = self.engine.sources(self.name)
        self._tasks = self.engine.tasks([self.name])
        self._size = self.engine.members.floats[self.name]

    def write(self, sink: np.ndarray, scale: float) -> Iterator[tuple[Task, int]]:
        """Merge the tensor into ``sink``: base + scale × merged task vector; yields non-finite results per piece."""
        cuts = self._cuts()
        before = self._seen(cuts)
        totals = self._measure(cuts, before)

        def piece(task: Task) -> int:
            wrong = 0
            seen = [counts[task[1] // PIECE] for counts in before]
            for start, deltas, base in self._blocks(task):
                masks = self._masks(deltas, cuts, seen)
                result = base.astype(np.float64) + scale * self.method.merged(deltas, masks, totals)
                bad = plain.store(result, sink, start)
                if bad < 0:
                    return bad
                wrong += bad
            return wrong

        yield from self.engine.run(piece, self._tasks)

    def _blocks(self, task: Task) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Blocks of a piece: first element, task vectors (M, n) float32, base (n,) float32."""
        _, start, count = task
        for at in range(start, start + count, _BLOCK):
            length = min(_BLOCK, start + count - at)
            base = plain.load(self._sources[-1], at, length)
            yield at, np.stack([plain.load(s, at, length) - base for s in self._sources[:-1]]), base

    def _cuts(self) -> list[Cut]:
        """Where each ranking is cut, exactly: by the upper 16 bits of the scores, then by the lower."""
        upper = self._histograms(None)
        nonzero = self._size - upper[:, _BINS]
        wanted = self.method.kept(self._size, nonzero)
        places = [find_bin(u[:_BINS], w) if 0 < w < self._size else (-1, 0) for u, w in zip(upper, wanted, strict=True)]
        lower = self._histograms([high for high, _ in places]) if any(high >= 0 for high, _ in places) else upper
        cuts = []
        for (high, rest), counts, want in zip(places, lower, wanted, strict=True):
            if high < 0:
                cuts.append(NOTHING if want <= 0 else EVERYTHING)
                continue
            low, ties = find_bin(counts[:_BINS], rest)
            cuts.append(Cut((high << 16) | low, ties, int(counts[low])))
        return cuts

    def _histograms(self, high: list[int] | None) -> np.ndarray:
        """(S, 65537): counts of the scores' upper 16 bits, or the lower 16 where the upper are ``high``; then zeros."""

        def piece(task: Task) -> np.ndarray:
            counts: np.ndarray | None = None
            for _, deltas, _ in self._blocks(task):
                bits = np.ascontiguousarray(self.method.scores(deltas), np.float32).view(np.uint32)
                counts = np.zeros((len(bits), _BINS + 1), np.int64) if counts is None else counts
                for k, row in enumerate(bits):
                    self.engine.kernels.count_bits(row, -1 if high is None else high[k], counts[k, :_BINS])
                    counts[k, _BINS] += len(row) - np.count_nonzero(row)
            assert counts is not None
            return counts

        total: np.ndarray | None = None
        for _, counts in self.engine.run(piece, self._tasks):
            total = counts if total is None else total + counts
        assert total is not None
        return total

    def _masks(self, deltas: np.ndarray, cuts: list[Cut], seen: list[int]) -> np.ndarray:
        """(S, n) what is kept of a block; ``seen`` counts scores equal to the cut so far and is brought forward."""
        if not cuts:
            return np.empty((0, deltas.shape[1]), bool)
        bits = np.ascontiguousarray(self.method.scores(deltas), np.float32).view(np.uint32)
        masks = np.stack([cut.mask(row, seen[k]) for k, (cut, row) in enumerate(zip(cuts, bits, strict=True))])
        for k, cut in enumerate(cuts):
            if 0 < cut.ties < cut.equal:
                seen[k] += int((bits[k] == np.uint32(cut.bits)).sum())
        return masks

    def _seen(self, cuts: list[Cut]) -> list[list[int]]:
        """Per ranking and piece: how many scores equal to the cut lie in earlier pieces. Needs a pass only for ties."""
        if not any(0 < cut.ties < cut.equal for cut in cuts):
            return [[0] * len(self._tasks) for _ in cuts]

        def piece(task: Task) -> np.ndarray:
            found = np.zeros(len(cuts), np.int64)
            for _, deltas, _ in self._blocks(task):
                bits = np.ascontiguousarray(self.method.scores(deltas), np.float32).view(np.uint32)
                found += [int((row == np.uint32(max(cut.bits, 0))).sum()) for cut, row in zip(cuts, bits, strict=True)]
            return found

        counts = np.array([found for _, found in self.engine.run(piece, self._tasks)])
        return (np.cumsum(counts, axis=0) - counts).T.tolist()

    def _measure(self, cuts: list[Cut], before: list[list[int]]) -> np.ndarray:
        """The method's sums over the whole tensor, exact over pieces."""

        def piece(task: Task) -> np.ndarray:
            seen = [counts[task[1] // PIECE] for counts in before]
            parts = [self.method.measure(d, self._masks(d, cuts, seen)) for _, d, _ in self._blocks(task)]
            return np.array([math.fsum(column) for column in np.array(parts).T])

        deltas = next(self._blocks((self.name, 0, min(1, self._size))))[1]
        if not len(self.method.measure(deltas, np.ones((len(cuts), 1), bool))):
            return np.empty(0)
        parts = np.array([part for _, part in self.engine.run(piece, self._tasks)])
        return np.array([math.fsum(column) for column in parts.T])
