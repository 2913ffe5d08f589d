"""The ensemble: one Ray Train run per member, as many at once as there is room for.

:func:`boom_ray.resources.place` says in which order and how wide; a member starts as soon as its workers fit, so a
freed bundle is taken at once and no two gangs wait for each other's halves.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from boom_ray.config import BoomError
from boom_ray.data.feed import rank_data_config, rank_datasets
from boom_ray.data.schedule import Batch
from boom_ray.ledger import Ledger
from boom_ray.resources import Bundle, Placement
from boom_ray.train.member import MemberTask
from boom_ray.train.worker import train_member


@dataclass(frozen=True)
class Room:
    """What the ensemble may take: workers at once, what each takes, members at once."""

    slots: int
    bundle: Bundle
    max_concurrent: int | None = None


def frozen_width(ledger: Ledger, task: MemberTask) -> tuple[int, int] | None:
    """(width, threads) that a member was started with, if it ever was."""
    file = ledger.root / "placement" / f"{task.key.name}.json"
    if not file.is_file():
        return None
    placement = json.loads(file.read_text())
    return placement["width"], placement["threads"]


def train_ensemble(
    ledger: Ledger,
    work: Mapping[str, tuple[MemberTask, Sequence[Batch]]],
    placements: Sequence[Placement],
    room: Room,
    tick: Callable[[], None],
    landed: Callable[[], None] = lambda: None,
) -> None:
    """Train every member of ``work`` (its task and its global batches); returns when all have ended.

    ``tick`` is called about once a second, to show progress, and ``landed`` after each member that is committed.

    Raises:
        BoomError: names the members that failed; the others are trained and kept.
    """
    failures: dict[str, BaseException] = {}
    waiting = list(placements)
    running: dict[Future[None], Placement] = {}
    pool = ThreadPoolExecutor(max_workers=len(waiting) or 1, thread_name_prefix="member")
    try:
        while waiting or running:
            free = room.slots - sum(p.width for p in running.values())
            while waiting and waiting[0].width <= free and len(running) < (room.max_concurrent or len(placements)):
                placement = waiting.pop(0)
                future = pool.submit(_train_one, ledger, *work[placement.name], placement.width, room.bundle)
                running[future] = placement
                free -= placement.width
            done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            tick()
            for future in done:
                name = running.pop(future).name
                if error := future.exception():
                    failures[name] = error
                else:
                    landed()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an interrupt nobody waits for a fit() that goes on
    if failures:
        lines = "\n  ".join(f"{name}: {_root_cause(error)}" for name, error in sorted(failures.items()))
        raise BoomError(
            f"{len(failures)} of {len(work)} members failed; the others are kept. Run again to resume.\n  {lines}"
        )


_START = threading.Lock()


def _train_one(ledger: Ledger, task: MemberTask, batches: Sequence[Batch], width: int, bundle: Bundle) -> None:
    frozen = frozen_width(ledger, task)
    if frozen is None:
        content = json.dumps({"width": width, "threads": task.threads})
        ledger.write_text(f"placement/{task.key.name}.json", content + "\n")
    else:
        width, threads = frozen
        task = replace(task, threads=threads)
    with _START:  # building datasets touches the driver's global Ray Data context
        trainer = TorchTrainer(
            train_member,
            train_loop_config={"task": task},
            torch_config=TorchConfig(backend="nccl" if bundle.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=width, use_gpu=bundle.gpus > 0, resources_per_worker=bundle.per_worker
            ),
            run_config=RunConfig(
                name=task.key.name,
                storage_path=str(ledger.scratch("ray_train").resolve()),
                failure_config=FailureConfig(max_failures=1),
            ),
            datasets=rank_datasets(batches, width),
            dataset_config=rank_data_config(),
        )
    trainer.fit()
    if not ledger.has(task.key):
        raise BoomError("training ended without a committed member")


def _root_cause(error: BaseException) -> str:
    """The worker's own words out of Ray Train's nested errors."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values()), error) if failures else error
    cause = getattr(inner, "cause", None) or inner
    text = str(cause).strip().splitlines()
    return text[-1] if text else type(cause).__name__
