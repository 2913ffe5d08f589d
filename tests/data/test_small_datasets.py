"""Datasets at the edge: one row, fewer rows than a batch, no rows, no negatives. A defined result, and no hang."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from boom_ray.data.schedule import batch_shuffle
from boom_ray.train.losses import info_nce


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("smallest_tail", [None, 2])
def test_a_dataset_smaller_than_a_batch_is_one_small_batch_or_none(rows: int, smallest_tail: int | None) -> None:
    epoch = batch_shuffle({"tiny": np.arange(rows)}, {"tiny": 8}, smallest_tail, 3, 0)
    kept = [len(batch.rows) for batch in epoch.batches]
    assert kept == ([rows] if smallest_tail is not None and rows >= smallest_tail else [])
    assert sum(kept) + sum(epoch.dropped.values()) == rows


def test_an_empty_dataset_beside_another_takes_no_step() -> None:
    epoch = batch_shuffle({"none": np.arange(0), "some": np.arange(16)}, {"none": 8, "some": 8}, 2, 3, 0)
    assert [batch.dataset for batch in epoch.batches] == ["some", "some"]


def test_a_row_alone_without_negatives_has_a_loss_of_zero_and_no_gradient() -> None:
    query = torch.nn.functional.normalize(torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    query.requires_grad_()
    loss = info_nce(query, query.detach().roll(1, 1), torch.ones(1, 1, dtype=torch.bool), 0.05)
    loss.backward()
    assert float(loss.detach()) == 0
    assert query.grad is not None
    assert float(query.grad.abs().max()) == 0
