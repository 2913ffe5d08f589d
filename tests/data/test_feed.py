"""Descriptors: each rank's slices of all batches in order, from any step on; and the same through Ray Data."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import ScheduleName
from boom_ray.data.batches import DrawSettings, local_feed, order_digest
from boom_ray.data.feed import descriptors, feed, rank_datasets, shard_name
from boom_ray.data.rules import dataset_rules
from boom_ray.data.schedule import Batch, Schedule, global_order, whole_run
from boom_ray.data.tokens import TokenStore

DRAW = DrawSettings(3, 2)


@given(st.lists(st.integers(1, 20), max_size=30), st.sampled_from([1, 2, 4, 8]), st.data())
def test_descriptors_are_the_slices_of_every_step_from_the_start(sizes, width, data):
    batches = [Batch(f"d{i % 3}", 100 * i + np.arange(n), i // 7, i % 2 == 0) for i, n in enumerate(sizes)]
    start = data.draw(st.integers(0, len(batches)))
    ranks = [pa.concat_tables(descriptors(batches, rank, width, start)).to_pylist() for rank in range(width)]
    assert all([row["step"] for row in rows] == list(range(start, len(batches))) for rows in ranks)
    for place, batch in enumerate(batches[start:]):
        parts = [rows[place] for rows in ranks]
        order = global_order([len(part["rows"]) for part in parts])
        assert np.concatenate([part["rows"] for part in parts])[order].tolist() == batch.rows.tolist()
        for part in parts:
            told = (part["dataset"], part["epoch"], part["global_rows"], part["in_batch"])
            assert told == (batch.dataset, batch.epoch, len(batch.rows), batch.in_batch)


@pytest.fixture(scope="module")
def _ray():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # never somebody else's cluster
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("name", get_args(ScheduleName))
def test_ray_data_feeds_every_rank_its_slice_of_the_same_batches(small_tokens, name):
    """Digest per step of 1 and 2 ranks, from the start and from the middle of a run, against one process alone."""
    store = TokenStore(small_tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    batches = whole_run(bag, Schedule(name, 14, 2, dataset_rules(store.datasets)), 5, 1, None).batches
    expected = [order_digest(b.row_keys) for b in local_feed(batches, store, DRAW)]
    for width, start in ((1, 0), (2, 0), (2, len(batches) // 2)):
        shards = rank_datasets(batches, width, start)
        fed = [list(feed(shards[shard_name(rank)].iterator(), store, DRAW)) for rank in range(width)]
        assert [[b.step for b in own] for own in fed] == [list(range(start, len(batches)))] * width
        found = []
        for parts in zip(*fed, strict=True):
            order = global_order([len(p.row_keys) for p in parts])
            found.append(order_digest(np.concatenate([p.row_keys for p in parts])[order]))
        assert found == expected[start:]
