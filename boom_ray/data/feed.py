"""Feeding ranks through Ray Data: each rank has its own Ray Dataset of batch descriptors, in schedule order.

Ray Train would by default split one dataset with ``streaming_split(equal=True)``, which ties no row to a rank and drops
the tail; here Ray Data carries descriptors (a step and this rank's row numbers) and never decides an order. The rows
themselves are taken from memory-mapped Arrow shards where they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionOptions
from ray.train import DataConfig

from boom_ray.data.batches import BatchReader, DrawSettings, Slice, TrainBatch, slice_of
from boom_ray.data.schedule import Batch
from boom_ray.data.tokens import TokenStore

if TYPE_CHECKING:
    from ray.data import DataIterator, Dataset

_STEPS_PER_BLOCK = 4096
_COLUMNS = {
    "step": pa.int64(),
    "epoch": pa.int32(),
    "dataset": pa.string(),
    "rows": pa.list_(pa.int64()),
    "global_rows": pa.int64(),
    "in_batch": pa.bool_(),
}


def descriptors(batches: Sequence[Batch], rank: int, width: int, start: int = 0) -> list[pa.Table]:
    """One row per global step from ``start`` on: step, epoch, dataset, this rank's rows: what a ``Slice`` holds."""
    blocks = []
    for first in range(start, len(batches), _STEPS_PER_BLOCK):
        steps = range(first, min(first + _STEPS_PER_BLOCK, len(batches)))
        part = [slice_of(batches[step], step, rank, width) for step in steps]
        columns = {name: pa.array([getattr(s, name) for s in part], kind) for name, kind in _COLUMNS.items()}
        blocks.append(pa.table(columns))
    return blocks or [pa.table({name: pa.array([], kind) for name, kind in _COLUMNS.items()})]


def rank_datasets(batches: Sequence[Batch], width: int, start: int = 0) -> dict[str, Dataset]:
    """``{"rank-0": Dataset, ...}`` for a ``TorchTrainer``; rank r asks for the shard of its own name.

    A member that goes on at step ``start`` gets the batches from there on: nothing is replayed.
    """
    return {shard_name(rank): ray.data.from_arrow(descriptors(batches, rank, width, start)) for rank in range(width)}


def shard_name(rank: int) -> str:
    return f"rank-{rank}"


def rank_data_config() -> DataConfig:
    """Every rank takes its own dataset whole and in order: nothing is split."""
    options = ExecutionOptions(preserve_order=True)
    return DataConfig(datasets_to_split=[], execution_options=options)


def feed(shard: DataIterator, store: TokenStore, settings: DrawSettings) -> Iterator[TrainBatch]:
    """This rank's part of every global batch, in order; descriptors are prefetched by Ray Data."""
    read = BatchReader(store, settings)
    for block in shard.iter_batches(batch_size=64, batch_format="pyarrow", prefetch_batches=2):
        for step in block.to_pylist():
            yield read(Slice(**{**step, "rows": np.asarray(step["rows"], dtype=np.int64)}))
