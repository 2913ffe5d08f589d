"""Probe batches of a gradient search: rows that no member has seen, drawn evenly over tasks, a function of the step.

A batch holds rows of one dataset, as in training, so that in-batch negatives are of the same kind. Datasets (or task
types, and within a type its datasets) take turns in an order that is drawn anew for every round, so after any number of
whole rounds each has had the same number of batches, whatever its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from boom_ray.config import BoomError
from boom_ray.data.bagging import derive_seed
from boom_ray.data.batches import BatchReader, Slice, TrainBatch
from boom_ray.search.objective_rows import Source


class Probe:
    """Batches by step."""

    def __init__(
        self,
        source: Source,
        rows: Mapping[str, np.ndarray],
        batch: int,
        seed: int,
        evenly: Literal["tasks", "types"] = "tasks",
    ) -> None:
        """``rows``: row numbers by dataset, as from ``objective_rows.judged_rows``; ``batch``: rows of a batch at most.

        Raises:
            BoomError: no dataset has rows; a batch of fewer than two rows, which have no negatives.
        """
        if batch < 2:
            raise BoomError(f"a probe batch has at least two rows, so that there are negatives; got {batch}.")
        if not rows:
            raise BoomError("a gradient search has no rows to descend on: raise corpus.dev.fraction.")
        self._read = BatchReader(source.store, source.draw)
        self._rows = dict(rows)
        self._batch = batch
        self._seed = seed
        types = {d["name"]: d["task_type"] for d in source.store.datasets}
        names = sorted(self._rows)
        kinds = dict.fromkeys(names if evenly == "tasks" else sorted({types[name] for name in names}))
        self._turns = [[n for n in names if kind in (n, types[n])] for kind in kinds]

    @property
    def datasets(self) -> list[str]:
        return [name for turn in self._turns for name in turn]

    def batch(self, step: int) -> TrainBatch:
        """The rows of a step."""
        name, visit = self.visit(step)
        rows, epoch = self.rows(name, visit)
        return self._read(Slice(step, epoch, name, rows, len(rows)))

    def first(self, name: str) -> TrainBatch:
        """The first batch of a dataset."""
        rows, epoch = self.rows(name, 0)
        return self._read(Slice(0, epoch, name, rows, len(rows)))

    def visit(self, step: int) -> tuple[str, int]:
        """The dataset of a step, and how often it had its turn before."""
        cycle, place = divmod(step, len(self._turns))
        order = np.random.default_rng(derive_seed(self._seed, "probe turns", cycle)).permutation(len(self._turns))
        turn = self._turns[order[place]]
        visit, which = divmod(cycle, len(turn))
        return turn[which], visit

    def rows(self, name: str, visit: int) -> tuple[np.ndarray, int]:
        """Row numbers, ascending, of a dataset's batch, and the pass over its rows that the batch belongs to."""
        every = self._rows[name]
        size = min(self._batch, len(every))
        epoch, place = divmod(visit, len(every) // size)
        order = np.random.default_rng(derive_seed(self._seed, "probe rows", name, epoch)).permutation(len(every))
        return np.sort(every[order[place * size : (place + 1) * size]]), epoch
