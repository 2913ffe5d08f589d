"""Evaluation sets as mteb tasks: subclasses of mteb's own task classes, so that every score is mteb's.

A local set becomes a task of our own (:mod:`boom_ray.evaluate.local_tasks`); a task of mteb's registry stays what it
is, with its own numbers (its clustering embeds the 4 % of the texts that the leaderboard's scores are made from), but
is cut where a cap is asked for. Both keep, as ``samples``, what mteb's main score was made from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from mteb import abstasks as kinds
from mteb.abstasks.abstask import AbsTask

from boom_ray.evaluate import keeping
from boom_ray.evaluate.cutting import cut
from boom_ray.evaluate.downloads import cached_configurations
from boom_ray.evaluate.local_tasks import local_task
from boom_ray.evaluate.sets import EvalSet
from boom_ray.evaluate.significance import Samples

_KEEPING: tuple[tuple[Any, Any], ...] = (  # the first that fits: some classes of mteb are subclasses of others
    (kinds.AbsTaskRetrieval, keeping.KeepsRetrieval),
    (kinds.AbsTaskMultilabelClassification, keeping.KeepsMultilabel),
    (kinds.AbsTaskRegression, keeping.KeepsRegression),
    (kinds.AbsTaskClassification, keeping.KeepsClassification),
    (kinds.AbsTaskClustering, keeping.KeepsClustering),
    (kinds.AbsTaskClusteringLegacy, keeping.KeepsOldClustering),
    (kinds.AbsTaskPairClassification, keeping.KeepsPairs),
    (kinds.AbsTaskSTS, keeping.KeepsSTS),
    (kinds.AbsTaskBitextMining, keeping.KeepsBitext),
    (kinds.AbsTaskSummarization, keeping.KeepsSummaries),
    (kinds.AbsTaskZeroShotClassification, keeping.KeepsZeroShot),
)


def build_task(entry: EvalSet) -> Any:
    """A fresh mteb task over a set, cut to its cap; its data are read when mteb asks for them.

    Its ``samples`` are there once mteb has evaluated it. Build a task for each evaluation: mteb's clustering draws from
    a random state that the task carries along.
    """
    if entry.path is not None:
        return local_task(entry)
    import mteb

    known = mteb.get_task(entry.task, eval_splits=list(entry.splits), hf_subsets=list(entry.subsets))
    return _aggregate(known, entry) if known.is_aggregate else kept(known, entry)


def kept(known: AbsTask, entry: EvalSet) -> Any:
    """A task of mteb as it is, of a class of its own that keeps samples and obeys the entry's cap."""
    keeps = next((mixin for kind, mixin in _KEEPING if isinstance(known, kind)), keeping.Keeping)
    task = type(type(known).__name__, (_Registered, keeps, type(known)), {})()
    task.entry, task.kept = entry, {}
    task.hf_subsets = list(known.hf_subsets)
    task.filter_eval_splits(known.eval_splits)
    task.metadata = _capped(known.metadata, entry)
    return task


class _Registered:
    """A task of the registry with the entry's cap."""

    entry: EvalSet
    metadata: Any
    dataset: Any
    data_loaded: bool

    def load_data(self, **options: Any) -> None:
        """As mteb's, then cut. The data are asked for by mteb's revision; results bear the capped one."""
        if self.data_loaded:
            return
        own, self.metadata = self.metadata, _without_code(type(self).metadata)
        try:
            with cached_configurations():
                super().load_data(**options)  # type: ignore[misc]
        finally:
            self.metadata = own
        if self.entry.cap is not None:
            cut(self, self.entry.cap)

    def unload_data(self) -> None:
        """As mteb's, but the metadata stay: here they name the cap."""
        self.dataset = None
        self.data_loaded = False


class _Aggregate:
    """The samples of a task that is made of tasks: mteb's score is the plain mean over them."""

    entry: EvalSet
    metadata: Any

    @property
    def samples(self) -> Samples:
        parts = tuple(task.samples for task in self.metadata.tasks)
        kind = "parts" if all(part.kind != "none" for part in parts) else "none"
        return Samples(kind, self.entry.text_revision, np.zeros(0), parts=parts if kind == "parts" else ())


def _aggregate(known: Any, entry: EvalSet) -> Any:
    """An aggregate of mteb over tasks that keep samples; the cap is that of each task in it."""
    parts = []
    for part in known.metadata.tasks:
        splits, subsets = tuple(part.eval_splits), tuple(part.hf_subsets)
        metric, revision = part.metadata.main_score, part.metadata.revision
        told = replace(entry, task=part.metadata.name, splits=splits, subsets=subsets, metric=metric, digest=revision)
        parts.append(kept(part, told))
    task = type(type(known).__name__, (_Aggregate, type(known)), {})()
    task.entry = entry
    task.metadata = _capped(known.metadata, entry).model_copy(update={"tasks": parts})
    task.tasks, task.taskname_to_task = parts, {part.metadata.name: part for part in parts}
    return task


def _without_code(metadata: Any) -> Any:
    """mteb's metadata, by which a dataset's own code is not run, whatever the task says."""
    dataset = {key: value for key, value in metadata.dataset.items() if key != "trust_remote_code"}
    return metadata.model_copy(update={"dataset": dataset})


def _capped(metadata: Any, entry: EvalSet) -> Any:
    return metadata.model_copy(update={"dataset": {**metadata.dataset, "revision": entry.text_revision}})
