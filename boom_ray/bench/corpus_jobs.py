"""The parts of ``boom-ray bench corpus``, each a process of its own: ``python -m boom_ray.bench.corpus_jobs``."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_STEP = 10_000  # where the feed is taken up again
_BATCH = 32
_FEED_SECONDS = 8.0
_TRAIN_STEPS = 4


def train_tokenizer(root: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A WordPiece tokenizer of the made rows, for both sides."""
    from boom_ray.data.tokens import train_tokenizer

    with _session():
        _build(root, "few.jsonl", "sample")
    train_tokenizer(root / "sample", settings["vocab"], settings["max_tokens"], root / "tokenizer")
    return {}


def ours(root: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The whole pipeline on few rows, then on all."""
    started = time.perf_counter()
    with _session():
        ray = time.perf_counter() - started

        def run(rows: str) -> None:
            _build(root, f"{rows}.jsonl", f"corpus-{rows}")
            _tokenise(root, f"corpus-{rows}", f"tokens-{rows}", settings["max_tokens"])

        return _steady(root, run, ray)


def theirs(root: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``datasets.map`` on few rows, then on all; reading the rows is not counted."""
    started = time.perf_counter()
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer", trust_remote_code=False)
    cache = str(root / "cache")
    imported = time.perf_counter() - started
    loaded = {
        rows: datasets.load_dataset("json", data_files=str(root / f"{rows}.jsonl"), split="train", cache_dir=cache)
        for rows in ("few", "rows")
    }

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        def ids(texts: list[str]) -> Any:
            flags = {"return_attention_mask": False, "return_token_type_ids": False}
            return (
                tokenizer(texts, truncation=True, max_length=settings["max_tokens"], **flags)["input_ids"]
                if texts
                else []
            )

        def nested(rows: list[list[str]]) -> list[list[Any]]:
            flat = iter(ids([text for row in rows for text in row]))
            return [list(itertools.islice(flat, len(row))) for row in rows]

        return {"query_ids": ids(batch["query"]), "pos_ids": nested(batch["pos"]), "neg_ids": nested(batch["neg"])}

    def run(rows: str) -> None:
        columns = loaded[rows].column_names
        loaded[rows].map(
            encode, batched=True, num_proc=settings["cores"], remove_columns=columns, load_from_cache_file=False
        )

    return _steady(root, run, imported)


def feed(root: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Batches out of the shards through Ray Data, and what a MiniLM-sized encoder makes of them on the same cores."""
    from boom_ray.data.batches import DrawSettings
    from boom_ray.data.feed import feed as feed_rank
    from boom_ray.data.feed import rank_datasets, shard_name

    tokens, draw = root / "tokens-rows", DrawSettings(seed=1, hard_negatives=7)
    with _session():
        started = time.perf_counter()
        store, batches = _schedule(tokens)
        step = min(_STEP, len(batches) - 1)
        stream = feed_rank(rank_datasets(batches, 1, start=step)[shard_name(0)].iterator(), store, draw)
        first = next(stream)
        resume = time.perf_counter() - started
        assert first.step == step
        started, rows, count = time.perf_counter(), 0, 0
        seconds = 0.0
        for batch in stream:
            rows, count = rows + len(batch.queries), count + batch.tokens
            seconds = time.perf_counter() - started
            if seconds > _FEED_SECONDS:
                break
    trained = _trained(root, settings, store, batches)
    return {
        "rows": rows / seconds,
        "tokens": count / seconds,
        "trained": trained,
        "ratio": count / seconds / trained,
        "resume": resume,
        "step": step,
        "steps": len(batches),
    }


def memory(root: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Idle first, then corpus and tokens of the short rows; who watches is the caller."""
    from boom_ray.bench.corpus import _IDLE_SECONDS

    with _session():
        time.sleep(_IDLE_SECONDS)
        (root / "working").touch()
        started = time.perf_counter()
        _build(root, "short.jsonl", "corpus-short")
        found = _tokenise(root, "corpus-short", "tokens-short", settings["max_tokens"])
    return {"rows": found["rows"], "seconds": time.perf_counter() - started}


def _session() -> Any:
    from boom_ray.cluster.session import ray_session

    return ray_session()


def _steady(root: Path, run: Callable[[str], None], before: float) -> dict[str, Any]:
    """Rows per second beyond the few rows, seconds of both runs, and start-up: all that does not grow with the rows."""
    seconds = {}
    for rows in ("few", "rows"):
        started = time.perf_counter()
        run(rows)
        seconds[rows] = time.perf_counter() - started
    counts = {rows: _lines(root / f"{rows}.jsonl") for rows in ("few", "rows")}
    rate = (counts["rows"] - counts["few"]) / (seconds["rows"] - seconds["few"])
    return {
        "rate": rate,
        "start": before + max(0.0, seconds["few"] - counts["few"] / rate),
        "seconds": seconds["rows"],
    }


def _lines(file: Path) -> int:
    with open(file, "rb") as stream:
        return sum(1 for _ in stream)


def _build(root: Path, rows: str, out: str) -> None:
    from boom_ray.config.corpus import Corpus
    from boom_ray.data.corpus import build_corpus

    shutil.rmtree(root / out, ignore_errors=True)
    corpus = Corpus.model_validate({"datasets": [{"path": str(root / rows), "name": "made", "task_type": "retrieval"}]})
    (root / out).mkdir()
    build_corpus(corpus, 1, json.loads((root / "evaluation.json").read_text()), root / out)


def _tokenise(root: Path, corpus: str, out: str, max_tokens: int) -> dict[str, Any]:
    from boom_ray.data.corpus import tokenise

    shutil.rmtree(root / out, ignore_errors=True)
    return tokenise(root / corpus, root / "tokenizer", max_tokens, root / out)


def _schedule(tokens: Path) -> tuple[Any, Any]:
    """The store and enough passes over all of its rows."""
    from boom_ray.data.rules import dataset_rules
    from boom_ray.data.schedule import SMALLEST_TAIL, Schedule, whole_run
    from boom_ray.data.tokens import TokenStore

    store = TokenStore(tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == place) for place, d in enumerate(store.datasets)}
    schedule = Schedule("batch_shuffle", _BATCH, SMALLEST_TAIL, dataset_rules(store.datasets))
    epochs = 1 + (_STEP + _STEP // 2) * _BATCH // len(store)
    return store, whole_run(bag, schedule, 1, epochs, None).batches


def _trained(root: Path, settings: Mapping[str, Any], store: Any, batches: Any) -> float:
    """Tokens per second that an encoder of MiniLM's shape trains on, with all cores, after one step to warm up."""
    import torch

    from boom_ray.base import build_base
    from boom_ray.config import BuildBase, Train
    from boom_ray.data.batches import DrawSettings, local_feed
    from boom_ray.encoder import Encoder
    from boom_ray.train.cache import batch_encoder
    from boom_ray.train.engine import PlainEngine, freeze_unused
    from boom_ray.train.loop import LoopSettings, train
    from boom_ray.train.meter import StepRecord

    torch.set_num_threads(settings["cores"])
    build = BuildBase(layers=6, hidden=384, heads=12, vocab=settings["vocab"])
    build_base(build, root / "tokenizer", root / "minilm", "mean", settings["max_tokens"], seed=1)
    encoder = Encoder.load(root / "minilm", device="cpu")
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    recipe = Train(batch_size=_BATCH, chunk_tokens=2048)
    records: list[StepRecord] = []
    loop = LoopSettings("bench", recipe, _TRAIN_STEPS, 1)
    fed = local_feed(batches[: _TRAIN_STEPS + 1], store, DrawSettings(seed=1, hard_negatives=7))
    train(PlainEngine(batch_encoder(encoder, recipe), recipe), fed, loop, records.append)
    return sum(r.tokens for r in records[1:]) / sum(r.seconds for r in records[1:])


JOBS = {"tokenizer": train_tokenizer, "ours": ours, "datasets": theirs, "feed": feed, "memory": memory}

if __name__ == "__main__":
    _settings = json.loads(sys.argv[1])
    _result = JOBS[_settings["job"]](Path(_settings["root"]), _settings)
    sys.stdout.flush()
    os.write(1, (json.dumps(_result) + "\n").encode())
