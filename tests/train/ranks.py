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
from boom_ray.train.cache import batch_encoder
from boom_ray.train.engine import DeepSpeedEngine, PlainEngine, freeze_unused
from boom_ray.train.gather import gather_rows
from boom_ray.train.loop import LoopSettings, global_loss, train
from boom_ray.train.meter import StepRecord

STEPS = 20
STAGES = (0, 1, 2, 3)
GRAPH_TOKENS = {0: None, 1: 0, 2: 600, 3: 300}  # of 1,000 to 2,000 in a batch
DRAW = DrawSettings(1, 3)
# dataset, rows of the global batch: even and uneven slices, fewer rows than ranks, every kind of loss and mask
CASES = [
    *(("ask", 16), ("ask", 13), ("ask", 2), ("ask", 1)),
    *(("sort", 15), ("group", 9), ("alike", 16), ("alike", 7), ("alike", 2), ("alike", 1)),
    *((MIXED, 24), (MIXED, 11), (MIXED, 1)),
]


def settings(zero_stage: int = 0, precision: str = "float32") -> Train:
    return Train(
        batch_size=16,
        learning_rate=1e-3,
        temperature=0.05,
        hard_negatives=3,
        weight_decay=0.1,
        max_grad_norm=9.0,
        zero_stage=zero_stage,
        chunk_tokens=256,
        graph_tokens=GRAPH_TOKENS[zero_stage],
        precision=precision,
        false_negative_margin=0.02,
    )


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    store = TokenStore(folder / "tokens")
    out: dict[str, Any] = {"gradients": [gradients(folder, store, *case, rank, world) for case in CASES]}
    for stage in STAGES:
        out[f"zero-{stage}"] = steps(folder, store, rank, world, DeepSpeedEngine, settings(stage))
    for stage in (1, 3):
        out[f"bfloat16-{stage}"] = steps(folder, store, rank, world, DeepSpeedEngine, settings(stage, "bfloat16"))
    if world == 1:
        out["plain"] = steps(folder, store, rank, world, PlainEngine, settings())
    if rank == 0:
        torch.save(out, folder / f"out-{world}.pt")
    dist.barrier()
    dist.destroy_process_group()


def load(folder: Path) -> Encoder:
    encoder = Encoder.load(folder / "base", device="cpu")
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    return encoder


def loop_settings(train: Train) -> LoopSettings:
    return LoopSettings("member-0", train, STEPS, 3)


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
    loss = global_loss(batch_encoder(encoder, settings()), batch, everyone, loop_settings(settings()))
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


def steps(folder: Path, store: TokenStore, rank: int, world: int, engine: Any, recipe: Train) -> dict[str, Any]:
    """Steps of the real loop over batches of all datasets, one of them with fewer rows than ranks."""
    encoder = load(folder)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    bag["alike"], bag["ask"] = bag["alike"][:17], bag["ask"][:49]  # tails of one row
    plan = [b for epoch in (0, 1) for b in batch_shuffle(bag, dict.fromkeys(bag, 16), 1, 5, epoch).batches][:STEPS]
    assert len(plan) == STEPS
    batches = [part(store, step, b, rank, world) for step, b in enumerate(plan)]
    records: list[StepRecord] = []
    running = engine(batch_encoder(encoder, recipe), recipe)
    train(running, batches, loop_settings(recipe), records.append)
    weights = {n: tensor.clone() for n, tensor in running.tensors()}
    assert {n: tuple(w.shape) for n, w in weights.items()} == running.shapes
    before = dict(load(folder).backbone.named_parameters())
    moved = {n: p - before[n].detach() for n, p in weights.items()}
    told = {"losses": [r.loss for r in records], "norms": [r.grad_norm for r in records]}
    return {**told, "rows": [(r.rows, r.digest) for r in records], "weights": weights, "moved": moved}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
