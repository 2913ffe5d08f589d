"""One process that judges what a search asks for: a resident model, its objectives on both halves, and a descent."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.encoder import Encoder
from boom_ray.search.baselines import BASE
from boom_ray.search.coefficients import MergeSpec
from boom_ray.search.descent import Descent
from boom_ray.search.gradient import GradientSettings, gradient_descent
from boom_ray.search.objective import Judged, Objective, judge_point
from boom_ray.search.objective_rows import ObjectiveSettings, Source
from boom_ray.search.points import Point
from boom_ray.search.resident import Resident
from boom_ray.search.searchers import Asked
from boom_ray.stores.mirrors import send


@dataclass(frozen=True)
class JudgeSpec:
    """What every judging process needs; picklable.

    Attributes:
        gradient: of a search by descent, else None; samples: folder for the row values on half B; threads: of torch
            and of the merge.
    """

    merge: MergeSpec
    source: Source
    settings: ObjectiveSettings
    gradient: GradientSettings | None
    samples: Path
    threads: int


class Judge:
    """Call it with what is asked; the result is plain data, also where weights or vectors are not finite."""

    def __init__(self, spec: JudgeSpec) -> None:
        """
        Raises:
            BoomError: no rows to judge by; members that do not match.
        """
        self._spec = spec
        self._resident = Resident(spec.merge, "cpu", threads=spec.threads, precision=spec.settings.precision)
        self._objective = Objective(spec.source, spec.settings)
        self._objective.take_base(self._resident.encoder, members=True)  # the resident model starts as the base
        self.notes = self._objective.notes

    @cached_property
    def _reported(self) -> Objective:
        """The objective on half B, with dev rows alone: out-of-bag rows were searched on."""
        objective = Objective(self._spec.source, replace(self._spec.settings, shares=(1.0,)), half="b")
        objective.take_base(self._base)
        return objective

    @property
    def _base(self) -> Encoder:
        return Encoder.load(self._spec.merge.base, device="cpu")

    @cached_property
    def _descent(self) -> Descent:
        assert self._spec.gradient is not None
        return gradient_descent(self._resident, self._spec.source, self._spec.settings, self._spec.gradient)

    def __call__(self, asked: Asked) -> dict[str, Any]:
        """``value`` (None where it is not finite, with ``error``), ``by_dataset``, ``score``, ``metric``, ``rows``,
        ``seconds``; of a descent also its ``point`` and ``parameters``."""
        started = time.perf_counter()
        found: dict[str, Any] = {}
        point = asked.point
        try:
            if asked.what == "trial" and point is None:
                parameters, point = self._descent.advance(asked.parameters or None)
                found = {"parameters": parameters, "point": point.to_json()}
            descended = time.perf_counter() - started
            judged = self._judge(asked, point)
        except BoomError as error:
            total = time.perf_counter() - started
            return {**found, "value": None, "error": str(error), "seconds": {"total": total}}
        seconds = dict(judged.seconds)
        if asked.what == "trial" and asked.point is None:
            seconds |= {"descend": descended, "total": descended + seconds["total"]}
        finite = math.isfinite(judged.value)
        found |= {"value": judged.value if finite else None, "rows": judged.rows, "seconds": seconds}
        found |= {"by_dataset": finite_only(judged.by_dataset), "metric": finite_only(judged.metric)}
        found |= {"score": judged.score if math.isfinite(judged.score) else None}
        return found if finite else {**found, "error": "the objective is not a finite number"}

    def _judge(self, asked: Asked, point: Point | None) -> Judged:
        if asked.what == "half_b":
            judged = self._on_half_b(point)
            for name, samples in judged.samples.items():
                samples.save(self._spec.samples / asked.searcher / f"{name}.npz")
            send(self._spec.samples / asked.searcher)
            return judged
        if point is None:
            assert asked.searcher == BASE
            return self._objective.judge(self._base)
        if asked.what == "member":
            applied = self._resident.apply(point)
            judged = self._objective.judge_member(self._resident.encoder, self._spec.source.members[asked.number])
            seconds = {**judged.seconds, "apply": applied, "total": applied + judged.seconds["total"]}
            return replace(judged, seconds=seconds)
        return judge_point(self._resident, self._objective, point, asked.rung)

    def _on_half_b(self, point: Point | None) -> Judged:
        if point is None:
            return self._reported.judge(self._base)
        return judge_point(self._resident, self._reported, point)


def finite_only(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
