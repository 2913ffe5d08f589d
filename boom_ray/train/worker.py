"""One worker of one member: the function that Ray Train runs on every rank."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import ray.train

from boom_ray.data.feed import feed, shard_name
from boom_ray.train import member
from boom_ray.train.asked import Asked
from boom_ray.train.engine import DeepSpeedEngine
from boom_ray.train.member import MemberTask, StepLog, Trained


def train_member(config: dict[str, Any]) -> None:
    """Train ``config["task"]`` on this rank, from the checkpoint of its ``start`` on; rank 0 commits the member.

    Raises:
        Stopped: a node is taken back, or the driver has said its word: there is a checkpoint to go on from.
    """
    task: MemberTask = config["task"]
    context = ray.train.get_context()
    rank, width = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device())
    with StepLog(task, write=rank == 0) as log, closing(Asked(config["word"], listens=rank == 0)) as asked:
        encoder = member.load(task, device)
        engine = member.begin(task, encoder, DeepSpeedEngine)
        batches = feed(ray.train.get_dataset_shard(shard_name(rank)), member.open_store(task), task.draw)
        averages = member.run(task, engine, batches, log, asked)
    if rank == 0:
        member.commit(task, encoder, engine, Trained(log, averages, width))
    else:
        member.assist(engine)
    # report is a barrier: no rank ends before the member is committed
    ray.train.report({"steps": len(log.records), "loss": log.records[-1].loss if log.records else None})
