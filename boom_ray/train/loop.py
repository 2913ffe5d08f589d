"""The training loop: short, visible, on plain torch. It imports neither ray nor deepspeed.

One step: encode the batch in length-sorted chunks, gather the embeddings of all ranks, take the loss of the *global*
batch, and let the engine step. Every rank computes the same loss value and differentiates its own part of it; the
engine averages gradients over ranks, so the loss is multiplied by their number once, here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from boom_ray.config import BoomError, Train
from boom_ray.data.bagging import derive_seed
from boom_ray.data.batches import TrainBatch
from boom_ray.encoder import embed
from boom_ray.train.losses import NO_IN_BATCH, allowed_candidates, cosent, info_nce


class Engine(Protocol):
    """What the loop asks of plain torch or DeepSpeed."""

    @property
    def model(self) -> torch.nn.Module: ...

    def step(self, loss: torch.Tensor, learning_rate: float) -> float:
        """Backward, clip and update; returns the gradient norm before clipping."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """What a loop needs beside the model and the batches."""

    name: str
    train: Train
    steps: int
    seed: int
    pooling: str
    pad_id: int


@dataclass(frozen=True)
class StepRecord:
    """One global step as it is logged: loss before the update, rows of all ranks, texts and tokens of this one, seconds
    since the last step ended."""

    step: int
    dataset: str
    loss: float
    grad_norm: float
    learning_rate: float
    rows: int
    texts: int
    tokens: int
    seconds: float


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up over ``ceil(warmup_ratio * steps)`` steps, then linear decay to zero after the last."""
    warm = math.ceil(warmup_ratio * steps)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (steps - step) / max(1, steps - warm)


def train(
    engine: Engine, batches: Iterable[TrainBatch], settings: LoopSettings, on_step: Callable[[StepRecord], None]
) -> None:
    """Run the batches through the engine.

    Raises:
        BoomError: the loss or the gradient is not finite; names member, step and dataset.
    """
    engine.model.train()
    last = time.monotonic()
    for batch in batches:
        torch.manual_seed(derive_seed(settings.seed, "dropout", batch.step, _rank()))
        loss = global_loss(engine.model, batch, settings)
        rate = learning_rate(batch.step, settings.steps, settings.train.learning_rate, settings.train.warmup_ratio)
        grad_norm = engine.step(loss * _world(), rate)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(grad_norm)):
            raise BoomError(
                f"{settings.name}, step {batch.step}, dataset {batch.dataset}: loss {value}, gradient norm "
                f"{grad_norm}. Lower train.learning_rate or raise train.temperature, or train in float32."
            )
        now = time.monotonic()
        record = StepRecord(
            batch.step, batch.dataset, value, grad_norm, rate, batch.global_rows, batch.texts, batch.tokens, now - last
        )
        on_step(record)
        last = now


def global_loss(model: torch.nn.Module, batch: TrainBatch, settings: LoopSettings) -> torch.Tensor:
    """The loss of the global batch; gradients flow into this rank's embeddings only."""
    vectors = embed(
        model, batch.queries + batch.candidates, settings.pooling, settings.pad_id, settings.train.chunk_tokens
    )
    return batch_loss(vectors, batch, settings.train.temperature)


def batch_loss(vectors: torch.Tensor, batch: TrainBatch, temperature: float) -> torch.Tensor:
    """Loss of a batch whose local embeddings [b + C, D] stand in the order queries, candidates."""
    size = len(batch.queries)
    queries, positives, negatives = vectors[:size], vectors[size : 2 * size], vectors[2 * size :]
    queries, positives = _gather(queries), _gather(positives)
    if batch.scores is not None:
        return cosent(queries, positives, _gather_array(batch.scores, vectors), temperature)
    offset = _offset(size)
    candidates = torch.cat([positives, _gather(negatives)])
    owners = [np.arange(len(positives)), _gather_numpy(batch.owners[size:] + offset)]
    keys = [_gather_numpy(batch.candidate_keys[:size]), _gather_numpy(batch.candidate_keys[size:])]
    allowed = allowed_candidates(
        torch.from_numpy(np.concatenate(owners)).to(vectors.device),
        torch.from_numpy(_gather_numpy(batch.query_keys)).to(vectors.device),
        torch.from_numpy(np.concatenate(keys)).to(vectors.device),
        in_batch=batch.task_type not in NO_IN_BATCH,
    )
    return info_nce(queries, candidates, allowed, temperature)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _sizes(size: int, device: torch.device) -> list[int]:
    mine = torch.tensor([size], device=device)
    sizes = [torch.zeros_like(mine) for _ in range(_world())]
    dist.all_gather(sizes, mine)
    return [int(s) for s in sizes]


def _offset(size: int) -> int:
    """Rows on the ranks before this one."""
    if _world() == 1:
        return 0
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    return sum(_sizes(size, device)[: _rank()])


def _gather(local: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks, [sum of sizes, D], in rank order; only this rank's rows carry a gradient."""
    if _world() == 1:
        return local
    sizes = _sizes(len(local), local.device)
    padded = local.new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = local.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    rows[_rank()] = local
    return torch.cat(rows)


def _gather_array(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return _gather(torch.from_numpy(array).to(like.device))


def _gather_numpy(array: np.ndarray) -> np.ndarray:
    if _world() == 1:
        return array
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    return _gather(torch.from_numpy(np.ascontiguousarray(array)).to(device)).cpu().numpy()
