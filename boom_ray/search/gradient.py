"""Gradients of the training loss by the coefficients of a merge, on the resident model: one backward pass and M + 1
inner products per tensor.

No graph leads through the merge. Its parameters are in the span of the members, θ = Σ c_i t_i, so ∂L/∂c_i is the inner
product of ∂L/∂θ with t_i, taken in float64 over the mapped members; from there on all is a few numbers in Gram space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from boom_ray.config import BoomError
from boom_ray.data.batches import TrainBatch
from boom_ray.merge.engine import Engine, Task
from boom_ray.merge.members import CODES
from boom_ray.merge.methods import Setting
from boom_ray.search.descent import Descent
from boom_ray.search.forms import Direct, Form, Slope
from boom_ray.search.groups import GroupKind, tensor_groups
from boom_ray.search.objective_rows import ObjectiveSettings, Source, judged_rows
from boom_ray.search.points import Point
from boom_ray.search.probe import Probe
from boom_ray.search.resident import Resident
from boom_ray.search.self_positioning import SelfPositioning
from boom_ray.train.cache import BatchEncoder, Budget
from boom_ray.train.gather import gather_rows
from boom_ray.train.loop import batch_loss

_BUDGET = Budget(chunk_tokens=16384, graph_tokens=8192)
_FLOOR = 1e-6  # a base that is perfect on a probe batch must not divide by zero


@dataclass(frozen=True)
class GradientSettings:
    """A gradient search.

    Attributes:
        searcher: self_positioning, as published; gradient, the direct form.
        seed: of the probe batches; steps: between two trials; batch: rows of a probe batch; learning_rate: Adam's.
        penalty: mu of Self Positioning; the direct form has none.
        method, scale, groups: of the direct form; method None: the resident's.
        start: weights that the direct form begins with, one per member; None: all the same.
        probe_rows: of a dataset at most.
    """

    searcher: Literal["self_positioning", "gradient"]
    seed: int
    steps: int = 10
    batch: int = 32
    learning_rate: float = 0.02
    penalty: float = 0.05
    method: str | None = None
    scale: tuple[float, float] = (0.5, 1.5)
    groups: GroupKind = "none"
    start: tuple[float, ...] | None = None
    probe_rows: int = 2000


def gradient_descent(
    resident: Resident, source: Source, objective: ObjectiveSettings, settings: GradientSettings
) -> Descent:
    """A descent on the resident model, whose probe batches are of the rows that the objective may see.

    Self Positioning's loss is the plain mean over tasks, as published; the direct form's is relative to the base's, as
    the objective is.

    Raises:
        BoomError: no rows; a merge method that takes no weights; bounds that are none.
    """
    rows = judged_rows(source, "a", replace(objective, max_rows=settings.probe_rows))
    probe = Probe(source, rows, settings.batch, settings.seed, objective.aggregate)
    slopes = SpanSlopes(resident, probe, objective, relative=settings.searcher == "gradient")
    return Descent(_form(resident, settings), slopes, settings.steps, settings.learning_rate)


def _form(resident: Resident, settings: GradientSettings) -> Form:
    grams, spec = resident.grams, resident.spec
    if settings.searcher == "self_positioning":
        return SelfPositioning(grams, settings.penalty)
    weights = settings.start or (1.0,) * grams.members
    if len(weights) != grams.members:
        raise BoomError(f"{len(weights)} weights to start from for {grams.members} members. Give one per member.")
    setting = Setting(settings.method or spec.method, weights, {}, 1.0, spec.task_vectors)
    return Direct(grams, setting, tensor_groups(list(grams.matrices), settings.groups), settings.scale)


class SpanSlopes:
    """Loss and slope of probe batches at any point, with one model in memory: call it with (point, step)."""

    def __init__(self, resident: Resident, probe: Probe, objective: ObjectiveSettings, relative: bool) -> None:
        """``relative``: losses are divided by the base's on the first batch of the dataset."""
        encoder = resident.encoder
        self._resident = resident
        self._probe = probe
        self._settings = objective
        self._model = BatchEncoder(encoder.backbone, encoder.pooling, encoder.pad_id, _BUDGET)
        self._factors = self._over_base() if relative else dict.fromkeys(probe.datasets, 1.0)

    def __call__(self, point: Point, step: int) -> tuple[float, Slope]:
        """The loss of a step's batch at a point, and its inner products (M + 1,) with every tensor's span."""
        self._resident.apply(point)
        batch = self._probe.batch(step)
        loss = self._loss(batch) * self._factors[batch.dataset]
        names = list(self._resident.engine.members.floats)
        parameters = [self._resident.parameters[name] for name in names]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return float(loss.detach()), {n: self._inner(n, g) for n, g in zip(names, found, strict=True)}

    def _loss(self, batch: TrainBatch) -> torch.Tensor:
        self._model.eval()
        half = self._settings.precision == "bfloat16"
        device = next(self._model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=half):
            vectors = self._model(batch.queries + batch.candidates)
        return batch_loss(vectors, gather_rows(batch), self._settings.temperature)

    def _inner(self, name: str, gradient: torch.Tensor | None) -> np.ndarray:
        if gradient is None:  # no part of the loss, as a pooler
            return np.zeros(len(self._resident.engine.members.checkpoints))
        return inner_products(self._resident.engine, name, gradient.float().cpu().numpy())

    def _over_base(self) -> dict[str, float]:
        """1 / loss of the base, by dataset."""
        members = self._resident.engine.members
        base = np.eye(len(members.checkpoints))[-1]
        self._resident.fill(dict.fromkeys(members.floats, base))
        with torch.no_grad():
            losses = {name: float(self._loss(self._probe.first(name))) for name in self._probe.datasets}
        return {name: 1 / max(loss, _FLOOR) for name, loss in losses.items()}


def inner_products(engine: Engine, name: str, array: np.ndarray) -> np.ndarray:
    """Inner products (K,), in float64, of a float32 array with one tensor of all members and the base.

    The order of adding is that of the Gram matrices: any number of threads gives the same bits.
    """
    flat = np.ascontiguousarray(array, np.float32).ravel()
    sources = engine.sources(name)
    table = np.vstack([np.array([[flat.ctypes.data, CODES["F32"]]], np.int64), sources])
    pairs = np.array([(0, k + 1) for k in range(len(sources))], np.int64)

    def piece(task: Task) -> np.ndarray:
        out = np.empty(len(pairs))
        engine.kernels.gram_piece(table, pairs, -1, task[1], task[2], out)
        return out

    return _sums([part for _, part in engine.run(piece, engine.tasks([name]))], len(pairs))


def _sums(parts: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Exact sums over pieces; NaN where a part is not finite."""
    if not np.isfinite(parts).all():
        return np.full(size, math.nan)
    return np.array([math.fsum(part[k] for part in parts) for k in range(size)])
