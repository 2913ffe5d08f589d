"""The training loop: short, visible, on plain torch. It imports neither ray nor deepspeed.

One step: encode the batch (:mod:`boom_ray.train.cache`), gather the embeddings of all ranks, take the loss of the
*global* batch, and let the engine step. Every rank computes the same loss value and differentiates its own part of it;
the engine averages gradients over ranks, so the loss is multiplied by their number once, here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from boom_ray.config import BoomError, Train
from boom_ray.data.bagging import derive_seed
from boom_ray.data.batches import TrainBatch
from boom_ray.train.gather import GlobalRows, gather, gather_rows, rank, world
from boom_ray.train.losses import allowed_candidates, cosent, info_nce, not_above_positive
from boom_ray.train.memory import told
from boom_ray.train.meter import Meter, StepRecord
from boom_ray.train.state import State


class Engine(Protocol):
    """What the loop asks of plain torch or DeepSpeed."""

    @property
    def model(self) -> torch.nn.Module:
        """Token sequences of a batch to unit vectors: a :class:`boom_ray.train.cache.BatchEncoder` or its wrapping."""
        ...

    def step(self, loss: torch.Tensor, learning_rate: float, update: bool = True) -> float | None:
        """Backward, and where an update is due, clip and update.

        Returns the gradient norm before clipping, or None: no update was due, or float16 overflowed and it is skipped.
        """
        ...

    @property
    def state(self) -> State:
        """What a checkpoint holds of it."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the backbone's tensors, by name."""
        ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The backbone's tensors by name, whole, in float32, one at a time; an exchange, so all ranks take part."""
        ...


@dataclass(frozen=True)
class Turn:
    """What a global batch is to the update that it takes part in: its number, its batches, whether this is the last."""

    number: int
    batches: int
    last: bool

    @classmethod
    def of(cls, step: int, steps: int, accumulation: int) -> Turn:
        """Of batch ``step`` of ``steps``; the last update has what batches are left."""
        number, place = divmod(step, accumulation)
        batches = min(accumulation, steps - number * accumulation)
        return cls(number, batches, place == batches - 1)


@dataclass(frozen=True)
class LoopSettings:
    """What a loop needs beside the model and the batches."""

    name: str
    train: Train
    steps: int
    seed: int

    def turn(self, step: int) -> Turn:
        """Of a global batch."""
        return Turn.of(step, self.steps, self.train.accumulation)

    def rate(self, turn: Turn) -> float:
        """The learning rate of a turn's update."""
        updates = math.ceil(self.steps / self.train.accumulation)
        return learning_rate(turn.number, updates, self.train.learning_rate, self.train.warmup_ratio)


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
        BoomError: the loss or the gradient is not finite, or memory ran out; names member, step and dataset.
    """
    engine.model.train()
    meter = Meter(engine.model)
    for batch in meter.fed(batches):
        torch.manual_seed(derive_seed(settings.seed, "dropout", batch.step, rank()))
        turn = settings.turn(batch.step)
        rate = settings.rate(turn)
        with told(settings.name, batch):
            rows = gather_rows(batch)
            loss = global_loss(engine.model, batch, rows, settings)
            grad_norm = engine.step(loss * world() / turn.batches, rate, turn.last)
        value = float(loss.detach())
        if not (math.isfinite(value) and (grad_norm is None or math.isfinite(grad_norm))):
            raise BoomError(
                f"{settings.name}, step {batch.step}, dataset {batch.dataset}: loss {value}, gradient norm "
                f"{grad_norm}. Lower train.learning_rate or raise train.temperature, or train in float32."
            )
        on_step(meter.record(batch, rows, value, grad_norm, rate))


def global_loss(model: torch.nn.Module, batch: TrainBatch, rows: GlobalRows, settings: LoopSettings) -> torch.Tensor:
    """The loss of the global batch; gradients flow into this rank's embeddings only."""
    train = settings.train
    vectors = model(batch.queries + batch.candidates)
    return batch_loss(vectors, rows, train.temperature, train.false_negative_margin)


def batch_loss(
    vectors: torch.Tensor, rows: GlobalRows, temperature: float, margin: float | None = None
) -> torch.Tensor:
    """Loss of a batch whose local embeddings [b + C, D] stand in the order queries, candidates.

    CoSENT over the rows that are graded, InfoNCE over the others with the candidates that these bring; a batch of both
    has the mean over its rows.
    """
    size, device = rows.counts[rank()], vectors.device
    queries, positives = gather(vectors[:size]), gather(vectors[size : 2 * size])
    graded = ~np.isnan(rows.scores)
    value = vectors.new_zeros(())
    if graded.any():
        here = torch.from_numpy(graded).to(device)
        scores, datasets = (torch.from_numpy(column[graded]).to(device) for column in (rows.scores, rows.datasets))
        loss = cosent(queries[here], positives[here], scores, datasets, temperature)
        value = value + loss * (graded.sum() / len(graded))
    if not graded.all():
        here = torch.from_numpy(~graded).to(device)
        candidates = torch.cat([positives[here], gather(vectors[2 * size :])])
        allowed = _allowed(rows, ~graded, device)
        if margin is not None:
            allowed &= not_above_positive(queries[here], candidates, margin)
        loss = info_nce(queries[here], candidates, allowed, temperature)
        value = value + loss * ((~graded).sum() / len(graded))
    return value


def _allowed(rows: GlobalRows, here: np.ndarray, device: torch.device) -> torch.Tensor:
    """Boolean: which candidates each of the rows ``here`` is compared with; all hard negatives belong to these rows."""
    place = np.cumsum(here) - 1
    owners = np.concatenate([np.arange(here.sum()), place[rows.owners]])
    candidate_keys = np.concatenate([rows.positive_keys[here], rows.negative_keys])
    columns = (owners, rows.query_keys[here], candidate_keys, rows.in_batch[here], rows.labels[here])
    return allowed_candidates(*(torch.from_numpy(column).to(device) for column in columns))
