"""What a merge is judged by while weights are searched: the training loss on dev rows, relative to the base's.

Dev half A is searched on, half B is reported; no member has seen either. The losses of the datasets are divided by the
base's own before they are averaged, so that a dataset with a large loss does not drown the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from boom_ray.config import BoomError
from boom_ray.data.bagging import Draw, Rows, dev_rows, membership_hash
from boom_ray.data.batches import BatchReader, DrawSettings, Slice, TrainBatch
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import embed
from boom_ray.train.gather import gather_rows
from boom_ray.train.loop import batch_loss

Losses = dict[str, float]


def dev_batches(tokens: Path, drawn: Draw, half: str, max_rows: int, settings: DrawSettings) -> list[TrainBatch]:
    """One batch per dataset: at most ``max_rows`` dev rows of a half, lowest hash first.

    Raises:
        BoomError: no dataset has two dev rows, so there is nothing to judge by.
    """
    store = TokenStore(tokens)
    read = BatchReader(store, settings)
    every = Rows(store.ids, store.dataset, tuple(d["name"] for d in store.datasets))
    batches = []
    for name, found in dev_rows(every, drawn, half).items():
        order = np.argsort(membership_hash(store.ids[found], drawn.dev_seed), kind="stable")
        rows = np.sort(found[order[:max_rows]])
        if len(rows) >= 2:
            batches.append(read(Slice(0, 0, name, rows, len(rows))))
    if not batches:
        raise BoomError("no dataset has dev rows to judge merges by: raise corpus.dev.fraction or corpus.dev.min_rows.")
    return batches


@torch.inference_mode()
def dev_losses(
    model: torch.nn.Module, batches: Sequence[TrainBatch], pooling: str, pad_id: int, temperature: float
) -> Losses:
    """Training loss of a model on each dev batch."""
    model.eval()
    losses = {}
    for batch in batches:
        vectors = embed(model, batch.queries + batch.candidates, pooling, pad_id, 16384)
        losses[batch.dataset] = float(batch_loss(vectors, gather_rows(batch), temperature))
    return losses


def relative_loss(losses: Mapping[str, float], base: Mapping[str, float]) -> float:
    """Mean over datasets of loss / base loss; 1 is the base, lower is better. Not finite where a loss is not."""
    floor = 1e-6  # a base that is perfect on a tiny dev set must not divide by zero
    return math.fsum(losses[name] / max(base[name], floor) for name in base) / len(base)
