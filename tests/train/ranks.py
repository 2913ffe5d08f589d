"""What one rank of a group of CPU processes does for test_train_ranks.py: gradients on plain torch, steps on engines.

    python ranks.py RANK WORLD FOLDER

FOLDER holds ``base`` and ``tokens`` (directories) and receives ``out-WORLD.pt`` from rank 0.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from boom_ray.config import Train
from boom_ray.data.batches import BatchReader, DrawSettings, TrainBatch, slice_of
from boom_ray.data.schedule import MIXED, Batch, batch_shuffle
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.train.engine import DeepSpeedEngine, PlainEngine, freeze_unused
from boom_ray.train.gather import gather_rows
from boom_ray.train.loop import LoopSettings, StepRecord, global_loss, train

STEPS = 10
DRAW = DrawSettings(1, 3)
# dataset, rows of the global batch: even and uneven slices, fewer rows than ranks, every kind of loss and mask
CASES = [
    *(("ask", 16), ("ask", 13), ("ask", 2), ("ask", 1)),
    *(("sort", 15), ("group", 9), ("alike", 16), ("alike", 7), ("alike", 2), ("alike", 1)),
    *((MIXED, 24), (MIXED, 11), (MIXED, 1)),
]


def settings(zero_stage: int = 0) -> Train:
    return Train(
        batch_size=16,
        learning_rate=1e-3,
        temperature=0.05,
        hard_negatives=3,
        weight_decay=0.1,
        max_grad_norm=9.0,
        zero_stage=zero_stage,
        chunk_tokens=256,
        false_negative_margin=0.02,
    )


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    store = TokenStore(folder / "tokens")
    out: dict[str, Any] = {"gradients": [gradients(folder, store, *case, rank, world) for case in CASES]}
    for stage in (0, 1, 2):
        out[f"zero-{stage}"] = steps(folder, store, rank, world, DeepSpeedEngine, stage)
    if world == 1:
        out["plain"] = steps(folder, store, rank, world, PlainEngine, 0)
    if rank == 0:
        torch.save(out, folder / f"out-{world}.pt")
    dist.barrier()
    dist.destroy_process_group()


def load(folder: Path) -> Encoder:
    encoder = Encoder.load(folder / "base", device="cpu")
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    return encoder


def loop_settings(encoder: Encoder, stage: int = 0) -> LoopSettings:
    return LoopSettings("member-0", settings(stage), STEPS, 3, encoder.pooling, encoder.pad_id)


def part(store: TokenStore, step: int, batch: Batch, rank: int, world: int) -> TrainBatch:
    """This rank's part of a global batch; rows have one of three labels, or none."""
    mine = BatchReader(store, DRAW)(slice_of(batch, step, rank, world))
    return dataclasses.replace(mine, labels=(mine.row_keys % np.uint64(4)).astype(np.int64))


def gradients(folder: Path, store: TokenStore, name: str, count: int, rank: int, world: int) -> dict[str, Any]:
    """Loss and gradients of one global batch, averaged over ranks as DDP and DeepSpeed average them."""
    encoder = load(folder)
    names = [d["name"] for d in store.datasets]
    rows = np.random.default_rng(2).permutation(len(store))  # of every dataset
    rows = (rows if name == MIXED else np.flatnonzero(store.dataset == names.index(name)))[:count]
    batch = part(store, 0, Batch(name, rows, 0), rank, world)
    everyone = gather_rows(batch)
    loss = global_loss(encoder.backbone, batch, everyone, loop_settings(encoder))
    (loss * world).backward()
    found = {}
    for parameter_name, parameter in encoder.backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            dist.all_reduce(parameter.grad)
            found[parameter_name] = parameter.grad / world
    losses = [torch.zeros(()) for _ in range(world)]
    dist.all_gather(losses, loss.detach())
    return {"loss": losses, "gradients": found, "digest": everyone.digest}


def steps(folder: Path, store: TokenStore, rank: int, world: int, engine: Any, stage: int) -> dict[str, Any]:
    """Ten steps of the real loop over batches of all datasets, one of them with fewer rows than ranks."""
    encoder = load(folder)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    bag["alike"], bag["ask"] = bag["alike"][:17], bag["ask"][:49]  # tails of one row
    plan = batch_shuffle(bag, dict.fromkeys(bag, 16), 1, 5, 0).batches[:STEPS]
    batches = [part(store, step, b, rank, world) for step, b in enumerate(plan)]
    records: list[StepRecord] = []
    train(engine(encoder.backbone, settings(stage)), batches, loop_settings(encoder, stage), records.append)
    weights = {n: p.detach().clone() for n, p in encoder.backbone.named_parameters()}
    before = dict(load(folder).backbone.named_parameters())
    moved = {n: p - before[n].detach() for n, p in weights.items()}
    told = {"losses": [r.loss for r in records], "norms": [r.grad_norm for r in records]}
    return {**told, "rows": [(r.rows, r.digest) for r in records], "moved": moved}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
