"""What ``boom-ray bench train`` runs, each in a process of its own; prints seconds and processor seconds of every step.

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

Pairs = list[tuple[str, str]]
WARM_PAIRS = 8  # of a first step that is not counted
_RATE, _TEMPERATURE = 2e-5, 0.05


def theirs(job: Mapping[str, Any], batches: list[Pairs]) -> list[dict[str, float]]:
    """MultipleNegativesRankingLoss, or the cached one with its default mini-batches of 32."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    model = SentenceTransformer(job["model"], device="cpu")
    model.max_seq_length = job["max_tokens"]
    name = "CachedMultipleNegativesRankingLoss" if job["kind"] == "st cached" else "MultipleNegativesRankingLoss"
    loss = getattr(losses, name)(model, scale=1 / _TEMPERATURE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, fused=True)
    features = [[dict(model.preprocess(list(side))) for side in zip(*pairs, strict=True)] for pairs in batches]
    model.train()

    def step(sides: list[dict[str, Any]]) -> None:
        loss(sides, torch.arange(0)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(step, features)


def ours(job: Mapping[str, Any], batches: list[Pairs]) -> list[dict[str, float]]:
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
        chunk_tokens=job["chunk_tokens"],
        graph_tokens=job["graph_tokens"],
    )
    engine = PlainEngine(batch_encoder(encoder, recipe), recipe)
    settings = LoopSettings("bench", recipe, len(batches), 1)
    made = [_batch(encoder, pairs, step) for step, pairs in enumerate(batches)]
    return _timed(lambda batch: train(engine, [batch], settings, lambda record: None), made)


def limit(job: Mapping[str, Any], batches: list[Pairs]) -> list[dict[str, float]]:
    """Forward and backward of as many tokens in rows of one length, the batch's mean: no padding, nothing computed
    twice, no loss, no optimiser."""
    from boom_ray.train.cache import BatchEncoder, Budget, distinct

    encoder = _encoder(job)
    model = BatchEncoder(encoder.backbone, encoder.pooling, encoder.pad_id, Budget(job["chunk_tokens"])).train()
    rng, rows = np.random.default_rng(0), []
    for pairs in batches:
        texts, _ = distinct(encoder.tokenize([text for pair in pairs for text in pair]))
        tokens = sum(map(len, texts))
        width = round(tokens / len(texts))
        rows.append(list(rng.integers(1000, 20000, size=(round(tokens / width), width))))

    def step(texts: list[np.ndarray]) -> None:
        model(texts).sum().backward()
        model.zero_grad(set_to_none=True)

    return _timed(step, rows)


def _encoder(job: Mapping[str, Any]) -> Any:
    from boom_ray.encoder import Encoder
    from boom_ray.train.engine import freeze_unused

    encoder = Encoder.load(job["model"], device="cpu")
    encoder.max_tokens = job["max_tokens"]
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    return encoder


def _batch(encoder: Any, pairs: Pairs, step: int) -> Any:
    """Pairs as the loop takes them."""
    from boom_ray.data.batches import TrainBatch

    queries, passages = (encoder.tokenize(list(side)) for side in zip(*pairs, strict=True))
    numbers: dict[bytes, int] = {}
    keys = [np.array([numbers.setdefault(t.tobytes(), len(numbers)) for t in side]) for side in (queries, passages)]
    size, nothing = len(pairs), np.zeros(len(pairs), np.int64)
    return TrainBatch(
        step=step,
        dataset="bench",
        queries=queries,
        candidates=passages,
        owners=np.arange(size),
        query_keys=keys[0],
        candidate_keys=keys[1],
        labels=nothing,
        datasets=nothing,
        in_batch=np.ones(size, bool),
        scores=np.full(size, np.nan, np.float32),
        row_keys=np.arange(size, dtype=np.uint64),
        global_rows=size,
    )


def _timed(step: Callable[[Any], None], batches: list[Any]) -> list[dict[str, float]]:
    """Seconds of each step but the first."""
    found = []
    for batch in batches:
        started, cpu = time.perf_counter(), time.process_time()
        step(batch)
        found.append({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu})
    return found[1:]


KINDS = {"st plain": theirs, "st cached": theirs, "fast": ours, "lean": ours, "large": ours, "limit": limit}

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    pairs = [tuple(pair) for pair in json.loads(Path(settings["pairs"]).read_text())]
    size = settings["batch"]
    measured = [pairs[i * size : (i + 1) * size] for i in range(settings["steps"])]
    print(json.dumps(KINDS[settings["kind"]](settings, [pairs[-WARM_PAIRS:], *measured])))
