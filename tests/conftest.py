"""Fixtures that several rooms share: a tiny tokenised corpus of every task type, and a tiny BERT that reads it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from remote_servers import bucket, bucket_server, hub  # noqa: F401
from small_corpus import MAX_TOKENS, SIZES, example

# The models here are tiny: threads that wait for one another cost ten times what they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # every server of a test's Ray binds to 127.0.0.1
# A shared machine is slow at times, and CI must not find by chance what nobody can find again.
hypothesis.settings.register_profile("boom_ray", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("boom_ray")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that start Ray come first."""
    items.sort(key=lambda item: not _starts_ray(str(item.path)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of two processes, one takes all files with tests that start Ray, the other the rest, file by file."""
    from xdist.scheduler import LoadScopeScheduling

    class Rooms(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if _starts_ray(str(config.rootpath / file)) else file

    return Rooms(config, log)


@cache
def _starts_ray(file: str) -> bool:
    return "mark.slow" in Path(file).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row shards (two) and datasets.json of 160 rows: retrieval, classification, clustering and sts."""
    import pyarrow as pa

    from boom_ray.config.corpus import FilesSource
    from boom_ray.data.datasets import resolve_rules
    from boom_ray.data.parts import ROWS
    from boom_ray.data.schema import row_id

    folder, rng = tmp_path_factory.mktemp("small_corpus"), random.Random(5)
    source = FilesSource(path="small.jsonl")
    datasets = [{"rows": rows, **resolve_rules(name, task, source, rows)} for name, (task, rows) in SIZES.items()]
    (folder / "datasets.json").write_text(json.dumps(datasets))
    rows = []
    for name, (task_type, count) in SIZES.items():
        for number in range(count):
            row = example(name, number, rng)
            identity = row_id(name, row["query"], row["pos"])
            rows.append({"id": identity, "dataset": name, "task_type": task_type, **row})
    for shard, part in enumerate((rows[:70], rows[70:])):
        with pa.ipc.new_file(str(folder / f"rows-{shard:05d}.arrow"), ROWS) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(part, schema=ROWS))
    return folder


@pytest.fixture(scope="session")
def small_tokenizer(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from boom_ray.data.tokens import train_tokenizer

    out = tmp_path_factory.mktemp("small_tokenizer")
    train_tokenizer(small_corpus, 300, MAX_TOKENS, out)
    return out


@pytest.fixture(scope="session")
def small_tokens(small_corpus: Path, small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the corpus' token shards: open it with ``TokenStore``."""
    from boom_ray.data.tokens import TokenJob, save_effective_tokenizer, tokenise_shard

    out = tmp_path_factory.mktemp("small_tokens")
    (out / "datasets.json").write_text((small_corpus / "datasets.json").read_text())
    job = TokenJob(out / "tokenizer.json", out / "datasets.json", out)
    save_effective_tokenizer(small_tokenizer, MAX_TOKENS, job.tokenizer)
    for shard in sorted(small_corpus.glob("rows-*")):
        tokenise_shard(shard, job)
    return out


@pytest.fixture(scope="session")
def small_base(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``small_base(seed=0, pooling="mean")``: the directory of a BERT of 2 layers of 32 with random weights."""
    from boom_ray.base import build_base
    from boom_ray.config import BuildBase, Pooling

    root = tmp_path_factory.mktemp("small_base")

    def make(seed: int = 0, pooling: Pooling = "mean") -> Path:
        out = root / f"{pooling}-{seed}"
        if not out.exists():
            build = BuildBase(layers=2, hidden=32, heads=2, vocab=300, warm_steps=0, learning_rate=1e-3)
            build_base(build, small_tokenizer, out, pooling, MAX_TOKENS, seed)
        return out

    return make
