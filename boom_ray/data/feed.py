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

from boom_ray.data.batches import DrawSettings, TrainBatch, assemble
from boom_ray.data.schedule import Batch, rank_rows
from boom_ray.data.tokens import TokenStore

if TYPE_CHECKING:
    from ray.data import DataIterator, Dataset

_STEPS_PER_BLOCK = 4096


def descriptors(batches: Sequence[Batch], rank: int, width: int) -> list[pa.Table]:
    """One row per global step: step, epoch, dataset, this rank's rows, rows of the batch."""
    blocks = []
    for start in range(0, len(batches), _STEPS_PER_BLOCK):
        part = batches[start : start + _STEPS_PER_BLOCK]
        columns = {
            "step": pa.array(range(start, start + len(part)), pa.int64()),
            "epoch": pa.array([b.epoch for b in part], pa.int32()),
            "dataset": pa.array([b.dataset for b in part], pa.string()),
            "rows": pa.array([rank_rows(b.rows, rank, width) for b in part], pa.list_(pa.int64())),
            "global_rows": pa.array([len(b.rows) for b in part], pa.int64()),
        }
        blocks.append(pa.table(columns))
    return blocks


def rank_datasets(batches: Sequence[Batch], width: int) -> dict[str, Dataset]:
    """``{"rank-0": Dataset, ...}`` for a ``TorchTrainer``; rank r asks for the shard of its own name."""
    return {shard_name(rank): ray.data.from_arrow(descriptors(batches, rank, width)) for rank in range(width)}


def shard_name(rank: int) -> str:
    return f"rank-{rank}"


def rank_data_config() -> DataConfig:
    """Every rank takes its own dataset whole and in order: nothing is split."""
    options = ExecutionOptions(preserve_order=True)
    return DataConfig(datasets_to_split=[], execution_options=options)


def feed(shard: DataIterator, store: TokenStore, settings: DrawSettings) -> Iterator[TrainBatch]:
    """This rank's part of every global batch, in order; descriptors are prefetched by Ray Data."""
    task_types = {d["name"]: d["task_type"] for d in store.datasets}
    for block in shard.iter_batches(batch_size=64, batch_format="pyarrow", prefetch_batches=2):
        for step in block.to_pylist():
            rows = store.take(np.asarray(step["rows"], dtype=np.int64))
            dataset = (step["dataset"], task_types[step["dataset"]])
            yield assemble(step["step"], dataset, rows, step["epoch"], settings, step["global_rows"])
