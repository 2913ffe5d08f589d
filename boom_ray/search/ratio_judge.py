"""Judging a set of members on disk: merged in memory by its ratios, on the rows of one objective for all sets."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from boom_ray.cluster.session import get, largest_node, off_the_head
from boom_ray.resources import Bundle
from boom_ray.search.objective import Judged, Objective, ObjectiveSettings, Source
from boom_ray.search.objective_rows import Half
from boom_ray.search.points import Point, even_point
from boom_ray.search.ratio_members import Place, Pool, RatioTask
from boom_ray.search.settings import objective_settings, source_of


class Judges:
    """One actor that judges sets; it holds a GPU only while it does, and no CPU while members train."""

    def __init__(self, task: RatioTask, needed: Bundle) -> None:
        self._task, self._gpu = task, min(1.0, needed.gpus)
        self._threads = largest_node()
        self._actor: Any = None

    def judge(self, places: Sequence[Place], pool: Pool, half: Half = "a") -> tuple[Judged, dict[str, float]]:
        """What it found, and device-seconds by what took them."""
        recipe = self._task.recipe
        if self._actor is None:
            base = self._task.ledger.path(self._task.keys.base).resolve()
            made = ray.remote(num_cpus=0, num_gpus=self._gpu, **off_the_head())(SetJudge)
            of = (base, source_of(recipe, self._task.ledger, self._task.keys), objective_settings(recipe))
            self._actor = made.remote(*of, recipe.merge.task_vectors, self._threads)
        ratios = [self._task.space.slots[slot].ratio for slot, _ in places]
        shares = ratios if recipe.ratio_search.weights == "ratio" else [1.0] * len(ratios)
        point = even_point(recipe.merge.method, shares, recipe.merge.scale)
        paths = tuple(pool.path(slot, rung) for slot, rung in places)
        found, seconds = get(self._actor.judge.remote(paths, point, half))
        devices = self._gpu or float(self._threads)
        return found, {name: value * devices for name, value in seconds.items()}

    def rest(self) -> None:
        """Let go of the GPU, which the next members need."""
        if self._gpu:
            self.close()

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


class SetJudge:
    """Merges members in memory and judges the merge; the rows are chosen once for all sets."""

    def __init__(
        self, base: Path, source: Source, settings: ObjectiveSettings, task_vectors: bool, threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._base, self._source, self._settings = base, source, settings
        self._task_vectors, self._threads = task_vectors, threads
        self._objectives: dict[str, Objective] = {}

    def judge(self, members: tuple[Path, ...], point: Point, half: Half) -> tuple[Judged, dict[str, float]]:
        from boom_ray.merge.gram import gram
        from boom_ray.search.resident import MergeSpec, Resident

        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:  # of a Gram matrix, a few kilobytes
            grams = Path(folder) / "grams.npz"
            gram(members, self._base, workers=self._threads).save(grams)
            spec = MergeSpec(members, self._base, grams, point.method, self._task_vectors)
            resident = Resident(spec, threads=self._threads, precision=self._settings.precision)
        if half not in self._objectives:
            self._objectives[half] = Objective(self._source, self._settings, half)
            self._objectives[half].take_base(resident.encoder)
        objective = self._objectives[half]
        resident.apply(point)
        merged = time.perf_counter() - began
        found = objective.judge(resident.encoder)
        return found, {"merge": merged, **found.seconds, "total": merged + found.seconds["total"]}
