"""``boom-ray bench corpus``: how fast rows become tokens, beside ``datasets.map``; memory; how fast batches are fed.

Both sides tokenise the same rows with the same tokenizer on the same two cores, each in a process of its own, in turn.
Ours reads jsonl, validates, normalises, names, deduplicates, compares with evaluation texts, tokenises and writes
shards; ``datasets.map(batched=True, num_proc=2)`` starts from rows that are read already, tokenises and writes. Each
runs on few rows first: what that took beyond the steady rate is start-up, and the rate is that of the other rows.
Memory is the sum of PSS of our whole process tree above an idle Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boom_ray.bench.made_rows import DUPLICATES, SHORT, Lengths, evaluation_texts, write_rows
from boom_ray.config import BoomError

_FEW = 25  # the first run has one in 25 rows
_EVALUATION_TEXTS = 10_000
_IDLE_SECONDS = 8.0
_PULSE = 0.25


@dataclass(frozen=True)
class CorpusBench:
    """What is measured: ``rows`` tokenised by both sides in ``turns``, and memory at ``memory_rows`` (0: not).

    Attributes:
        vocab: of the WordPiece tokenizer that is trained on the rows.
        directory: where rows and outputs are made (default: a temporary one).
    """

    rows: int = 500_000
    turns: int = 1
    memory_rows: int = 0
    vocab: int = 30_000
    max_tokens: int = 128
    cores: int = 2
    directory: str | None = None


def bench_corpus(bench: CorpusBench, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the benchmark; returns settings, machine, figures of both sides, feed, memory.

    Raises:
        BoomError: too little disk; a part that fails.
    """
    root = Path(tempfile.mkdtemp(prefix="boom-ray-bench-", dir=bench.directory))
    try:
        need, free = 3000 * bench.rows + 1200 * bench.memory_rows, shutil.disk_usage(root).free
        if need > free:
            raise BoomError(f"the benchmark needs {need / 1e9:.1f} GB in {root} and {free / 1e9:.1f} GB are free.")
        say(f"making {bench.rows:,} rows and a tokenizer")
        _make(bench, root)
        turns = []
        for turn in range(bench.turns):
            ours, theirs = (_own(bench, root, side, say) for side in ("ours", "datasets"))
            turns.append({"ours": ours, "datasets": theirs, "ratio": ours["rate"] / theirs["rate"]})
            say(f"turn {turn + 1}: {ours['rate']:,.0f} rows/s, datasets.map {theirs['rate']:,.0f} rows/s")
        result = {"settings": asdict(bench), "machine": _machine(), "turns": turns}
        result["feed"] = _own(bench, root, "feed", say)
        if bench.memory_rows:
            say(f"memory: {bench.memory_rows:,} short rows")
            result["memory"] = _memory(bench, root)
        return result
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _make(bench: CorpusBench, root: Path) -> None:
    few = max(1000, bench.rows // _FEW)
    write_rows(root / "few.jsonl", few, Lengths(), seed=3)
    write_rows(root / "rows.jsonl", bench.rows, Lengths())
    (root / "evaluation.json").write_text(json.dumps(evaluation_texts(_EVALUATION_TEXTS)))
    _own(bench, root, "tokenizer", lambda line: None)


def _own(bench: CorpusBench, root: Path, job: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Run one job in a process of its own, on the bench's cores; its last line of output is the result."""
    process = _start(bench, root, job)
    output, errors = process.communicate()
    if process.returncode:
        raise BoomError(f"benchmark job '{job}' failed: {errors.strip()[-1500:]}")
    say(f"{job} done")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def _start(bench: CorpusBench, root: Path, job: str) -> subprocess.Popen[str]:
    settings = json.dumps({**asdict(bench), "root": str(root), "job": job})
    cores = sorted(os.sched_getaffinity(0))[: bench.cores]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "boom_ray.bench.corpus_jobs", settings]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )


def _memory(bench: CorpusBench, root: Path) -> dict[str, float]:
    """Peak of our process tree while corpus and tokens are made, and what it was while Ray was idle, in bytes."""
    write_rows(root / "short.jsonl", bench.memory_rows, SHORT)
    process = _start(bench, root, "memory")
    started, idle, peak = time.monotonic(), 0, 0
    while process.poll() is None:
        total = sum(_pss(pid) for pid in _tree(process.pid))
        if (root / "working").exists():
            peak = max(peak, total)
        elif time.monotonic() - started > _IDLE_SECONDS / 2:
            idle = max(idle, total)
        time.sleep(_PULSE)
    output, errors = process.communicate()
    if process.returncode:
        raise BoomError(f"benchmark job 'memory' failed: {errors.strip()[-1500:]}")
    return {**json.loads(output.splitlines()[-1]), "idle": idle, "peak": peak, "above_idle": peak - idle}


def _tree(root: int) -> Iterator[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        yield pid


def _pss(pid: int) -> int:
    with suppress(OSError, IndexError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0


def _machine() -> dict[str, Any]:
    return {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "kernel": os.uname().release}


def table(result: Mapping[str, Any]) -> str:
    """The figures as plain text."""
    rows, feed = result["settings"]["rows"], result["feed"]
    head = f"{'':14} {'rows/s':>9} {'start-up s':>10} {'seconds':>8}"
    lines = [f"{head}   ({rows:,} rows, {DUPLICATES:.0%} of them copies)"]
    for side in ("ours", "datasets"):
        runs = [turn[side] for turn in result["turns"]]
        rate, start, seconds = (statistics.median(run[key] for run in runs) for key in ("rate", "start", "seconds"))
        lines.append(f"{side:14} {rate:9,.0f} {start:10.1f} {seconds:8.1f}")
    lines.append(f"ours / datasets.map: {statistics.median(turn['ratio'] for turn in result['turns']):.2f}")
    lines.append(
        f"feed: {feed['rows']:,.0f} rows/s, {feed['tokens']:,.0f} tokens/s; a MiniLM-sized encoder trains on "
        f"{feed['trained']:,.0f} tokens/s: {feed['ratio']:.0f} times"
    )
    lines.append(f"feed resumes at step {feed['step']:,} of {feed['steps']:,} in {feed['resume']:.2f} s")
    if memory := result.get("memory"):
        lines.append(
            f"memory: {memory['above_idle'] / 2**20:,.0f} MiB above an idle Ray ({memory['idle'] / 2**20:,.0f} MiB) "
            f"for {memory['rows']:,} short rows in {memory['seconds']:.0f} s"
        )
    return "\n".join(lines)
