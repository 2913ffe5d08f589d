"""What ``boom-ray bench train`` runs, each in a process of its own; prints the seconds of every step and the memory.

sentence-transformers' losses run in a plain step (loss, backward, clip, fused AdamW) without their trainer's overhead,
their texts tokenised and padded before the clock starts; ours run in the loop that trains members.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boom_ray.bench.train import WARM_ROWS

Rows = list[list[str]]  # query, positive, and as many negatives in every row
_RATE, _TEMPERATURE = 2e-5, 0.05


def theirs(job: Mapping[str, Any], batches: list[Rows]) -> list[dict[str, float]]:
    """MultipleNegativesRankingLoss, or the cached one with its default mini-batches of 32."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    device = torch.device(job["device"])
    model = SentenceTransformer(job["model"], device=job["device"])
    model.max_seq_length = job["max_tokens"]
    name = "CachedMultipleNegativesRankingLoss" if job["kind"] == "st cached" else "MultipleNegativesRankingLoss"
    loss = getattr(losses, name)(model, scale=1 / _TEMPERATURE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, fused=True)
    features = [[dict(model.preprocess(list(side))) for side in zip(*rows, strict=True)] for rows in batches]
    model.train()

    def step(sides: list[dict[str, Any]]) -> None:
        ready = [{k: v.to(device) if torch.is_tensor(v) else v for k, v in side.items()} for side in sides]
        # the cached loss computes its forward passes again inside backward, so both run under autocast
        with torch.autocast(device.type, torch.bfloat16, enabled=job["precision"] == "bfloat16"):
            loss(ready, torch.arange(0, device=device)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(step, features, device)


def ours(job: Mapping[str, Any], batches: list[Rows]) -> list[dict[str, float]]:
    """The loop on plain torch, with the graphs of ``graph_tokens`` tokens kept."""
    from boom_ray.config import Train
    from boom_ray.train.cache import batch_encoder
    from boom_ray.train.engine import PlainEngine
    from boom_ray.train.loop import LoopSettings, train

    encoder = _encoder(job)
    recipe = Train(
        batch_size=max(map(len, batches)),
        learning_rate=_RATE,
        temperature=_TEMPERATURE,
        hard_negatives=0,
        precision=job["precision"],
        chunk_tokens=job["chunk_tokens"],
        graph_tokens=job["graph_tokens"],
    )
    engine = PlainEngine(batch_encoder(encoder, recipe), recipe)
    settings = LoopSettings("bench", recipe, len(batches), 1)
    made = [_batch(encoder, rows, step) for step, rows in enumerate(batches)]
    device = torch.device(job["device"])
    return _timed(lambda batch: train(engine, [batch], settings, lambda record: None), made, device)


def limit(job: Mapping[str, Any], batches: list[Rows]) -> list[dict[str, float]]:
    """Forward and backward of as many tokens in rows of one length, the batch's mean: no padding, nothing computed
    twice, no loss, no optimiser."""
    from boom_ray.train.cache import BatchEncoder, Budget, distinct

    encoder, device = _encoder(job), torch.device(job["device"])
    model = BatchEncoder(encoder.backbone, encoder.pooling, encoder.pad_id, Budget(job["chunk_tokens"])).train()
    rng, made = np.random.default_rng(0), []
    for rows in batches:
        texts, _ = distinct(encoder.tokenize([text for row in rows for text in row]))
        tokens = sum(map(len, texts))
        width = round(tokens / len(texts))
        ids = rng.integers(3, encoder.backbone.config.vocab_size, size=(round(tokens / width), width))
        made.append(list(ids))

    def step(texts: list[np.ndarray]) -> None:
        size = max(1, job["chunk_tokens"] // len(texts[0]))
        for start in range(0, len(texts), size):  # a chunk's graph is gone before the next: no loss joins them
            with torch.autocast(device.type, torch.bfloat16, enabled=job["precision"] == "bfloat16"):
                vectors = model(texts[start : start + size])
            vectors.sum().backward()
        model.zero_grad(set_to_none=True)

    return _timed(step, made, device)


def _encoder(job: Mapping[str, Any]) -> Any:
    from boom_ray.encoder import Encoder
    from boom_ray.train.engine import freeze_unused

    encoder = Encoder.load(job["model"], device=job["device"])
    encoder.max_tokens = job["max_tokens"]
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    return encoder


def _batch(encoder: Any, rows: Rows, step: int) -> Any:
    """Rows as the loop takes them."""
    from boom_ray.data.batches import TrainBatch, text_keys

    sides = [encoder.tokenize(list(side)) for side in zip(*rows, strict=True)]
    queries, candidates = sides[0], [text for side in sides[1:] for text in side]
    size, nothing = len(rows), np.zeros(len(rows), np.int64)
    return TrainBatch(
        step=step,
        dataset="bench",
        queries=queries,
        candidates=candidates,
        owners=np.tile(np.arange(size), len(sides) - 1),
        query_keys=text_keys(queries),
        candidate_keys=text_keys(candidates),
        labels=nothing,
        datasets=nothing,
        in_batch=np.ones(size, bool),
        scores=np.full(size, np.nan, np.float32),
        row_keys=np.arange(size, dtype=np.uint64),
        global_rows=size,
    )


def _timed(step: Callable[[Any], None], batches: list[Any], device: torch.device) -> list[dict[str, float]]:
    """Seconds of each step but the first."""
    found = []
    for batch in batches:
        started, cpu = time.perf_counter(), time.process_time()
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu})
    return found[1:]


def work(job: Mapping[str, Any], batches: list[Rows]) -> dict[str, float | None]:
    """Tokens and model FLOPs of the measured batches, and the device's peak: the same for all variants."""
    from boom_ray.train.meter import FlopRule, peak_flops

    encoder = _encoder({**job, "device": "cpu"})
    lengths = np.array([len(text) for rows in batches for row in rows for text in encoder.tokenize(row)])
    peak = peak_flops(torch.device(job["device"]))
    return {"tokens": float(lengths.sum()), "flops": FlopRule.of(encoder.backbone)(lengths), "peak": peak}


KINDS = {"st plain": theirs, "st cached": theirs, "fast": ours, "lean": ours, "large": ours, "limit": limit}


def main(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one kind; ``steps`` is empty where the device's memory did not do."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    rows = json.loads(Path(job["rows"]).read_text())
    size = job["batch"]
    measured = [rows[i * size : (i + 1) * size] for i in range(job["steps"])]
    if job["kind"] == "work":
        return work(job, measured)
    try:
        steps = KINDS[job["kind"]](job, [rows[-WARM_ROWS:], *measured])
    except torch.OutOfMemoryError:
        steps = []
    memory = torch.cuda.max_memory_allocated() if job["device"].startswith("cuda") else None
    return {"steps": steps, "memory": memory}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
