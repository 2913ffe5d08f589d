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

from boom_ray.config import Lora, Train
from boom_ray.data.batches import BatchReader, DrawSettings, TrainBatch, slice_of
from boom_ray.data.schedule import MIXED, Batch, batch_shuffle
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.train.cache import BatchEncoder, batch_encoder
from boom_ray.train.engine import DeepSpeedEngine, PlainEngine, freeze_unused
from boom_ray.train.gather import gather_rows
from boom_ray.train.loop import LoopSettings, global_loss, train
from boom_ray.train.lora import adapt
from boom_ray.train.meter import StepRecord

STEPS = 20
FEW = 7  # two updates of three batches, and one of a single batch
STAGES = (0, 1, 2, 3)
GRAPH_TOKENS = {0: None, 1: 0, 2: 600, 3: 300}  # of 1,000 to 2,000 in a batch
DRAW = DrawSettings(1, 3)
HAS_FLOAT16 = torch.ops.mkldnn._is_mkldnn_fp16_supported()
# dataset, rows of the global batch: even and uneven slices, fewer rows than ranks, every kind of loss and mask
CASES = [
    *(("ask", 16), ("ask", 13), ("ask", 2), ("ask", 1)),
    *(("sort", 15), ("group", 9), ("alike", 16), ("alike", 7), ("alike", 2), ("alike", 1)),
    *((MIXED, 24), (MIXED, 11), (MIXED, 1)),
]


LORA = Lora(rank=4, alpha=8, dropout=0.0, targets=("query", "value", "dense"))
# settings that must not change what one rank on plain torch computes, by name; those of a group share that run
EXTRAS: dict[str, dict[str, Any]] = {
    **{f"accumulated-{stage}": {"zero_stage": stage, "accumulation": 3} for stage in STAGES},
    **{f"adapted-{stage}": {"zero_stage": stage, "lora": LORA} for stage in STAGES},
    **{f"offloaded-{stage}": {"zero_stage": stage, "offload": "optimizer", "accumulation": 3} for stage in (1, 2)},
    "offloaded-3": {"zero_stage": 3, "offload": "weights", "accumulation": 3},
}
PLAIN: dict[str, dict[str, Any]] = {"accumulated": {"accumulation": 3}, "adapted": {"lora": LORA}}


def settings(zero_stage: int = 0, **changes: Any) -> Train:
    train = Train(
        batch_size=16,
        learning_rate=1e-3,
        temperature=0.05,
        hard_negatives=3,
        weight_decay=0.1,
        max_grad_norm=9.0,
        zero_stage=zero_stage,
        chunk_tokens=256,
        graph_tokens=GRAPH_TOKENS[zero_stage],
        false_negative_margin=0.02,
    )
    return train.model_copy(update=changes)


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    store = TokenStore(folder / "tokens")
    out: dict[str, Any] = {"gradients": [gradients(folder, store, *case, rank, world) for case in CASES]}
    for stage in STAGES:
        out[f"zero-{stage}"] = steps(folder, store, rank, world, DeepSpeedEngine, settings(stage))
    for stage in (1, 3):
        halved = settings(stage, precision="bfloat16")
        out[f"bfloat16-{stage}"] = steps(folder, store, rank, world, DeepSpeedEngine, halved)
    for name, changes in EXTRAS.items():
        out[name] = steps(folder, store, rank, world, DeepSpeedEngine, settings(**changes), FEW)
    if HAS_FLOAT16:
        halved = settings(1, precision="float16")
        out["float16"] = steps(folder, store, rank, world, DeepSpeedEngine, halved)
        out["overflow"] = steps(folder, store, rank, world, overflowing, halved, 14)
    if world == 1:
        out["plain"] = steps(folder, store, rank, world, PlainEngine, settings())
        for name, changes in PLAIN.items():
            out[name] = steps(folder, store, rank, world, PlainEngine, settings(**changes), FEW)
    if rank == 0:
        torch.save(out, folder / f"out-{world}.pt")
    dist.barrier()
    dist.destroy_process_group()


def overflowing(model: BatchEncoder, train: Train) -> DeepSpeedEngine:
    """An engine whose first gradients are too large for float16."""
    engine = DeepSpeedEngine(model, train)
    engine._loss_scale.cur_scale = 2.0**20
    return engine


def load(folder: Path, lora: Lora | None = None) -> Encoder:
    encoder = Encoder.load(folder / "base", device="cpu")
    if lora is not None:
        adapt(encoder.backbone, lora, 7)
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    return encoder


def loop_settings(train: Train, count: int = STEPS) -> LoopSettings:
    return LoopSettings("member-0", train, count, 3)


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


def steps(
    folder: Path, store: TokenStore, rank: int, world: int, engine: Any, recipe: Train, count: int = STEPS
) -> dict[str, Any]:
    """Steps of the real loop over batches of all datasets, one of them with fewer rows than ranks."""
    encoder = load(folder, recipe.lora)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    bag["alike"], bag["ask"] = bag["alike"][:17], bag["ask"][:49]  # tails of one row
    plan = [b for epoch in (0, 1) for b in batch_shuffle(bag, dict.fromkeys(bag, 16), 1, 5, epoch).batches][:count]
    assert len(plan) == count
    batches = [part(store, step, b, rank, world) for step, b in enumerate(plan)]
    records: list[StepRecord] = []
    running = engine(batch_encoder(encoder, recipe), recipe)
    train(running, batches, loop_settings(recipe, count), records.append)
    weights = {n: tensor.clone() for n, tensor in running.tensors()}
    assert {n: tuple(w.shape) for n, w in weights.items()} == running.shapes
    before = dict(load(folder).backbone.named_parameters())
    moved = {n: p - before[n].detach() for n, p in weights.items()}
    told = {"losses": [r.loss for r in records], "norms": [r.grad_norm for r in records]}
    return {
        **told,
        "rows": [(r.rows, r.texts, r.tokens, r.digest) for r in records],
        "weights": weights,
        "moved": moved,
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
