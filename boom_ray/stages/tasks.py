"""The stages that run as Ray tasks and actors: the driver stays light and may sit on a head without CPUs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from boom_ray.cluster.session import get
from boom_ray.config import Base
from boom_ray.data.schedule import Batch
from boom_ray.evaluate.queue import anywhere
from boom_ray.ledger import Ledger
from boom_ray.search.points import Point
from boom_ray.stages.final import Final, FinalTask
from boom_ray.stores.mirrors import fetch, send
from boom_ray.train.member import MemberTask

_AGAIN = 3  # times that work is done once more whose process is lost, or the node with it; mistakes are not repeated


def make_start(base: Base, corpus: Path, seed: int, out: Path) -> None:
    """Write the start of all members: an imported base, or a tokenizer trained on the corpus and random weights."""
    get(_make_start.remote(base, str(corpus), seed, str(out)))
    fetch(out)


@ray.remote(num_cpus=1, max_retries=_AGAIN)
def _make_start(base: Base, corpus: str, seed: int, out: str) -> None:
    from boom_ray.base import build_base, import_base, resolve_base
    from boom_ray.data.tokens import train_tokenizer

    folder = Path(out)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was lost something may be left
    folder.mkdir(parents=True)
    if base.build is None:
        assert base.model is not None  # the recipe was checked: exactly one of model and build
        source = resolve_base(base.model, base.revision)
        import_base(source, folder, base.pooling, base.max_tokens, base.append_eos, base.layers)
    else:
        train_tokenizer(fetch(corpus), base.build.vocab, base.max_tokens, folder)
        build_base(base.build, folder, folder, base.pooling or "mean", base.max_tokens, seed)
    send(folder)


def warm(task: MemberTask, batches: Sequence[Batch]) -> None:
    """Train on plain torch in one process that has a node's cores (or one GPU) to itself."""
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
    get(_warm.options(num_cpus=task.threads, num_gpus=gpus).remote(task, list(batches)))


@ray.remote(max_retries=_AGAIN)
def _warm(task: MemberTask, batches: list[Batch]) -> None:
    from boom_ray.train.member import train_plain

    train_plain(task, batches)


def mark_sets(task: FinalTask) -> None:
    """Look in the corpus for the test texts of the sets, for the report; done before, it is not done again."""
    get(_mark_sets.remote(replace(task, sets=tuple(anywhere(task.sets)))))


@ray.remote(num_cpus=1, max_retries=_AGAIN)
def _mark_sets(task: FinalTask) -> None:
    from boom_ray.overlaps import mark_run
    from boom_ray.report.summary import run_samples

    ledger = Ledger(task.root)
    for entry in task.sets:
        if entry.path is not None:
            fetch(entry.path)
    mark_run(task.recipe, ledger, task.keys, task.sets, run_samples(ledger, task.keys))


class FinalHandle:
    """The final actor, with all cores of a node, and no GPU, until nobody holds this handle.

    One that is lost is started elsewhere and does its work again: it goes on with the merge, and commits once.
    """

    def __init__(self, task: FinalTask) -> None:
        options = {"num_cpus": task.threads, "max_restarts": _AGAIN, "max_task_retries": _AGAIN}
        self._actor: Any = ray.remote(Final).options(**options).remote(task)

    def merge(self, name: str, point: Point) -> None:
        get(self._actor.merge.remote(name, point))

    def publish(self, summary: dict[str, Any]) -> None:
        get(self._actor.publish.remote(summary))
