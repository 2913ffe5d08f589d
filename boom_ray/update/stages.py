"""The stages of an update that load models, as Ray tasks: the driver stays light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from boom_ray.cluster.session import get, largest_node
from boom_ray.evaluate.queue import anywhere
from boom_ray.evaluate.sets import EvalSet
from boom_ray.update.weights import BoundTask


def bound_step(task: BoundTask) -> dict[str, Any]:
    """The largest step that the bound allows: ``{"step", "drift", "limit", "texts"}``.

    Raises:
        BoomError: there is none.
    """
    return dict(get(_bound_step.options(num_cpus=largest_node(), num_gpus=_gpus()).remote(task)))


@ray.remote(max_retries=3)
def _bound_step(task: BoundTask) -> dict[str, Any]:
    from boom_ray.update.bound import find_step

    return find_step(task)


@dataclass(frozen=True)
class DriftTask:
    """Two versions (directories), and what they are compared on: sets, or texts by name."""

    old: str
    new: str
    sets: tuple[EvalSet, ...]
    texts: Mapping[str, Sequence[str]]


def measure_versions(task: DriftTask) -> dict[str, Any]:
    """Drift between two versions as plain values, see :mod:`boom_ray.evaluate.drift_verdict`."""
    task = DriftTask(task.old, task.new, tuple(anywhere(task.sets)), task.texts)
    return dict(get(_measure_versions.options(num_cpus=largest_node(), num_gpus=_gpus()).remote(task)))


@ray.remote(max_retries=3)
def _measure_versions(task: DriftTask) -> dict[str, Any]:
    from boom_ray.evaluate.drift import drift

    return drift(task.old, task.new, task.sets, task.texts).to_json()


def _gpus() -> float:
    return min(1.0, ray.cluster_resources().get("GPU", 0.0))
