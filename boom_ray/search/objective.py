"""What a merge is judged by while weights are searched: rows that no member has seen, by training loss or by metric.

Dev half A and the common out-of-bag rows are searched on, dev half B is reported; never a test set. Losses are divided
by the base's own before they are averaged, so that a dataset with a large loss does not drown the others; metrics are
averaged as mteb does, over tasks or over task types.

An objective is built once per actor: rows are chosen, tokens gathered and equal texts found then, and a trial costs
its encoding. It is deterministic: rows go by their hash, texts are cut into chunks by length, and nothing is drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from boom_ray.config import BoomError
from boom_ray.data.batches import TrainBatch
from boom_ray.data.rules import dataset_rules
from boom_ray.encoder import Encoder, chunk_budget, embed, length_chunks
from boom_ray.evaluate.means import even, over_types
from boom_ray.evaluate.samples import Samples
from boom_ray.search.objective_metrics import RowMetric
from boom_ray.search.objective_rows import (
    Half,
    ObjectiveSettings,
    judged_rows,
    member_rows,
    rung_rows,
    why_none_out_of_bag,
)
from boom_ray.search.objective_rows import Source as Source
from boom_ray.search.objective_rows import dev_batches as dev_batches
from boom_ray.search.points import Point
from boom_ray.search.resident import Resident
from boom_ray.train.cache import distinct
from boom_ray.train.gather import GlobalRows, gather_rows
from boom_ray.train.loop import batch_loss

Losses = dict[str, float]
_CHUNK_TOKENS = 16384
_FLOOR = 1e-6  # a base that is perfect on a tiny dev set must not divide by zero


@dataclass(frozen=True)
class Judged:
    """What is known of one model.

    Attributes:
        value: what is searched for, lower is better; not finite where the model's vectors are not.
        by_dataset: the objective of each dataset in its own sign: loss / base loss, or the metric.
        losses: training loss; metric: of the dataset's task type, 0..1, higher is better; score: their mean.
        rows: that it was judged on; rung: which of the nested subsets; None: not of a rung (a member's own rows).
        seconds: encode, score, with :func:`judge_point` apply, and total.
        samples: per dataset, the metric row by row, for :mod:`boom_ray.evaluate.significance`.
    """

    value: float
    by_dataset: Mapping[str, float]
    losses: Mapping[str, float]
    metric: Mapping[str, float]
    score: float
    rows: int
    rung: int | None
    seconds: Mapping[str, float]
    samples: Mapping[str, Samples] = field(repr=False)


class Objective:
    """Judges models by the same rows.

    Attributes:
        weights: of each dataset in the mean of the objective; metric_weights: the same among those with a metric.
        notes: what people should be told once, such as why no out-of-bag rows count.
    """

    def __init__(self, source: Source, settings: ObjectiveSettings, half: Half = "a") -> None:
        """
        Raises:
            BoomError: no rows to judge by; a dataset that is not in the corpus or reported as test.
        """
        self._source, self.settings, self.half = source, settings, half
        rows = judged_rows(source, half, settings)
        none = why_none_out_of_bag(source) if half == "a" and settings.out_of_bag else None
        self.notes = [none] if none else []
        self._panels = [self._panel(rung_rows(rows, share)) for share in settings.shares]
        self._members: dict[int, _Panel] = {}
        whole = self._panels[-1]
        self.metric_weights = self._mean(whole.metrics)
        self.weights = self._mean(whole.batches) if settings.kind == "loss" else self.metric_weights
        if not self.weights:
            raise BoomError(
                "no dataset has rows that a metric can be taken on: every row stands alone, without negatives and "
                "without scores. Choose the objective loss, or mine hard negatives (corpus.mine)."
            )

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        """(rows, distinct texts, tokens) of every rung: what a judgement costs."""
        return [(panel.rows, len(panel.texts), sum(map(len, panel.texts))) for panel in self._panels]

    @property
    def padding(self) -> float:
        """Share of what a CPU encodes for the whole objective that is padding."""
        lengths = np.array([len(text) for text in self._panels[-1].texts])
        chunks = length_chunks(lengths, chunk_budget(_CHUNK_TOKENS, torch.device("cpu")))
        return 1 - float(lengths.sum()) / sum(len(chunk) * int(lengths[chunk[0]]) for chunk in chunks)

    def take_base(self, encoder: Encoder, members: bool = False) -> None:
        """Take the losses of the base, which others are relative to; ``members``: also on each member's own rows."""
        for member in self._source.members if members else ():
            self._member_panel(member)
        for panel in [*self._panels, *self._members.values()]:
            panel.base = panel.losses(self._encode(encoder, panel), self.settings.temperature)

    def judge(self, encoder: Encoder, rung: int | None = None) -> Judged:
        """Judge a model by all rows, or by those of a rung (0 is the smallest).

        Raises:
            BoomError: the objective is the loss, and the base has not been taken; there is no such rung.
        """
        number = len(self._panels) - 1 if rung is None else rung
        if not 0 <= number < len(self._panels):
            raise BoomError(f"the objective has rungs 0 to {len(self._panels) - 1}, not {number}.")
        return replace(self._judged(encoder, self._panels[number]), rung=number)

    def judge_member(self, encoder: Encoder, member: int) -> Judged:
        """Judge the model of one member alone, also by the rows that only its own bag does not hold."""
        return self._judged(encoder, self._member_panel(member))

    def _member_panel(self, member: int) -> _Panel:
        if member not in self._members:
            if member not in self._source.members:
                known = ", ".join(map(str, self._source.members))
                raise BoomError(f"member-{member} is not among the members that are merged: {known}.")
            self._members[member] = self._panel(member_rows(self._source, self.half, member, self.settings))
        return self._members[member]

    def _panel(self, rows: Mapping[str, np.ndarray]) -> _Panel:
        return _Panel.of({name: self._source.batch(name, found) for name, found in rows.items()}, self)

    @property
    def types(self) -> dict[str, str]:
        """The task type of every dataset of the corpus."""
        return {name: rule.task_type for name, rule in dataset_rules(self._source.store.datasets).items()}

    def _mean(self, names: Mapping[str, object]) -> dict[str, float]:
        types = self.types
        return over_types({n: types[n] for n in names}) if self.settings.aggregate == "types" else even(list(names))

    @torch.inference_mode()
    def _encode(self, encoder: Encoder, panel: _Panel) -> torch.Tensor:
        """Unit vectors [distinct texts, D]."""
        encoder.backbone.eval()
        device = next(encoder.backbone.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            return embed(encoder.backbone, panel.texts, encoder.pooling, encoder.pad_id, _CHUNK_TOKENS)

    def _judged(self, encoder: Encoder, panel: _Panel) -> Judged:
        if self.settings.kind == "loss" and panel.base is None:
            raise BoomError("a relative loss needs the base's: call take_base before the first judgement.")
        started = time.perf_counter()
        vectors = self._encode(encoder, panel)
        encoded = time.perf_counter()
        finite = bool(torch.isfinite(vectors).all())
        losses = panel.losses(vectors, self.settings.temperature)
        samples = panel.samples(vectors) if finite else {}
        metric = {name: found.score() for name, found in samples.items()}
        score = _weighted(metric, self._mean(panel.metrics)) if finite else math.nan
        if self.settings.kind == "loss":
            relative = {name: loss / max((panel.base or {})[name], _FLOOR) for name, loss in losses.items()}
            by_dataset, value = relative, _weighted(relative, self._mean(panel.batches))
        else:
            by_dataset, value = metric, 1.0 - score
        value = value if finite else math.nan
        ended = time.perf_counter()
        seconds = {"encode": encoded - started, "score": ended - encoded, "total": ended - started}
        return Judged(value, by_dataset, losses, metric, score, panel.rows, None, seconds, samples)


@dataclass
class _Panel:
    """Rows that are judged together: a batch per dataset, and every distinct text of them once."""

    batches: dict[str, TrainBatch]
    told: dict[str, GlobalRows]
    metrics: dict[str, RowMetric]
    texts: list[np.ndarray]
    places: dict[str, torch.Tensor]
    base: Losses | None = None

    @classmethod
    def of(cls, batches: dict[str, TrainBatch], objective: Objective) -> _Panel:
        texts, place = distinct([text for b in batches.values() for text in (*b.queries, *b.candidates)])
        ends = np.cumsum([0, *(b.texts for b in batches.values())])
        places = {name: torch.from_numpy(place[a:b]) for name, a, b in zip(batches, ends, ends[1:], strict=False)}
        types, ranking = objective.types, objective.settings.ranking
        metrics = {name: RowMetric(batch, types[name], ranking) for name, batch in batches.items()}
        known = {name: metric for name, metric in metrics.items() if metric.known}
        return cls(batches, {name: gather_rows(b) for name, b in batches.items()}, known, list(texts), places)

    @property
    def rows(self) -> int:
        return sum(len(batch.queries) for batch in self.batches.values())

    @torch.inference_mode()
    def losses(self, vectors: torch.Tensor, temperature: float) -> Losses:
        """Training loss of every dataset from the vectors of the texts."""
        return {
            name: float(batch_loss(vectors[self.places[name].to(vectors.device)], told, temperature))
            for name, told in self.told.items()
        }

    @torch.inference_mode()
    def samples(self, vectors: torch.Tensor) -> dict[str, Samples]:
        """The metric of every dataset that has one, row by row."""
        return {
            name: metric.samples(vectors[self.places[name].to(vectors.device)]) for name, metric in self.metrics.items()
        }


def judge_point(resident: Resident, objective: Objective, point: Point, rung: int | None = None) -> Judged:
    """Apply a point and judge it; ``seconds`` then has apply, and total is that of the whole trial."""
    applied = resident.apply(point)
    found = objective.judge(resident.encoder, rung)
    seconds = {"apply": applied, **found.seconds, "total": applied + found.seconds["total"]}
    return replace(found, seconds=seconds)


def _weighted(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return math.fsum(weight * values[name] for name, weight in weights.items())


@torch.inference_mode()
def dev_losses(
    model: torch.nn.Module, batches: Sequence[TrainBatch], pooling: str, pad_id: int, temperature: float
) -> Losses:
    """Training loss of a model on each dev batch."""
    model.eval()
    losses = {}
    for batch in batches:
        vectors = embed(model, batch.queries + batch.candidates, pooling, pad_id, _CHUNK_TOKENS)
        losses[batch.dataset] = float(batch_loss(vectors, gather_rows(batch), temperature))
    return losses
