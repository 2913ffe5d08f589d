"""What one rank of a pair of CPU processes does for test_checkpoint_ranks.py.

    python checkpoint_ranks.py RANK FOLDER

FOLDER holds ``base`` and ``tokens``. The pair trains under each case of ``CASES``: undisturbed below ``whole``, with an
end in between below ``halves``; what ``ALONE`` was then is copied to ``alone``. Under those of ``ASKED`` it is stopped
below ``asked``: one of the two is told that its node is taken back.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import HAS_FLOAT16

from boom_ray.config import Averages, Checkpoints, Train
from boom_ray.data.batches import BatchReader, slice_of
from boom_ray.data.schedule import Batch, batch_shuffle
from boom_ray.data.tokens import TokenStore
from boom_ray.failures import NOBODY, NODE, Stopped
from boom_ray.ledger import Key
from boom_ray.train import checkpoint, member
from boom_ray.train.engine import DeepSpeedEngine
from boom_ray.train.member import MemberTask, StepLog, Trained

EVERY, STOP, STEPS = 4, 6, 8
CASES = {
    "zero-0": {"zero_stage": 0},
    "zero-1": {"zero_stage": 1, "averages": Averages(ema=0.9, last=2, every=3)},
    "zero-2-accumulated": {"zero_stage": 2, "accumulation": 2},
    "zero-3": {"zero_stage": 3},
    "bfloat16-1": {"zero_stage": 1, "precision": "bfloat16"},
    "float16-3": {"zero_stage": 3, "precision": "float16"},
}
CASES = {name: case for name, case in CASES.items() if HAS_FLOAT16 or case.get("precision") != "float16"}
ALONE = "zero-1"  # one process goes on from it
ASKED = {"zero-1": 5, "zero-2-accumulated": 6}  # and the checkpoint that they stop with: not one that is due


def schedule(store: TokenStore) -> list[Batch]:
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    return [b for epoch in (0, 1) for b in batch_shuffle(bag, dict.fromkeys(bag, 16), 2, 5, epoch).batches][:STEPS]


def task_of(folder: Path, case: str, root: str) -> MemberTask:
    train = Train(
        batch_size=16, learning_rate=1e-3, temperature=0.05, hard_negatives=2, chunk_tokens=256, weight_decay=0.1
    )
    train = train.model_copy(update=CASES[case])
    store = TokenStore(folder / "tokens")
    key = Key("members", case, "0" * 16)
    paths = (str(folder / "base"), str(folder / "tokens"))
    task = MemberTask(case, str(folder / root), key, *paths, train, len(schedule(store)), 3, 1)
    return dataclasses.replace(task, checkpoints=Checkpoints(every=EVERY, keep=2))


def fit(task: MemberTask, end: int | None = None, asked: Callable[[], int] = lambda: NOBODY) -> None:
    """As :func:`boom_ray.train.worker.train_member`, with this group and without Ray; ``end``: before that step."""
    rank, world = dist.get_rank(), dist.get_world_size()
    store = TokenStore(Path(task.tokens))
    read, batches = BatchReader(store, task.draw), schedule(store)
    feed = (read(slice_of(batches[step], step, rank, world)) for step in range(task.start, end or task.steps))
    with StepLog(task, write=rank == 0) as log:
        encoder = member.load(task, "cpu")
        engine = member.begin(task, encoder, DeepSpeedEngine)
        if task.train.precision == "float16" and not task.start:  # so much that gradients overflow at first
            engine.state.count({**engine.state.counters(), "cur_scale": 2.0**15})
        averages = member.run(task, engine, feed, log, asked)
    if end:
        return
    if rank == 0:
        member.commit(task, encoder, engine, Trained(log, averages, world))
    else:
        member.assist(engine)
    dist.barrier()


def from_newest(task: MemberTask, step: int = STOP // EVERY * EVERY) -> MemberTask:
    found = checkpoint.newest(task)
    assert found is not None
    assert found.step == step
    return dataclasses.replace(task, start=found.step)


def pair(folder: Path, rank: int) -> None:
    for case in CASES:
        fit(task_of(folder, case, "whole"))
        task = task_of(folder, case, "halves")
        fit(task, STOP)
        dist.barrier()
        if case == ALONE and rank == 0:
            shutil.copytree(folder / "halves", folder / "alone")
        dist.barrier()
        fit(from_newest(task))


def stopped_in_between(folder: Path, rank: int) -> None:
    for case, step in ASKED.items():
        task, calls = task_of(folder, case, "asked"), count(1)
        with pytest.raises(Stopped, match="taken back"):
            fit(task, asked=lambda: NODE if next(calls) >= EVERY + 1 and rank == 1 else NOBODY)  # noqa: B023
        fit(from_newest(task, step))


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    pair(folder, rank)
    stopped_in_between(folder, rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
