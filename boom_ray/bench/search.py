"""``boom-ray bench search``: trials of a weight search beside what a user does today, on the same rows.

A trial of ours applies a point to a resident model and judges it. A user merges to disk (our own streamed merge stands
for mergekit, which is slower), loads the model with sentence-transformers, encodes the texts of the same rows with its
defaults and takes the same metrics: as two commands per trial, and, kinder, in one process that has imported
everything. Every variant runs in processes of its own, one after the other. Members are the model plus noise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boom_ray.bench.search_made import Made, make
from boom_ray.bench.search_steps import step_line
from boom_ray.bench.train import machine
from boom_ray.config import BoomError

Say = Callable[[str], None]


@dataclass(frozen=True)
class SearchBench:
    """What is measured.

    Attributes:
        data: directory of ``DATASET.jsonl.gz`` files; directory: of everything that is made, None: a temporary one.
        rows: judged on by both sides; negatives: of a row at most; max_tokens: of a text, on both sides.
        points: that ours judges; turns: of them that the slower variants do.
        rungs, eta: of the proxies whose ranks are compared with those of the full objective.
    """

    data: str
    model: str
    directory: str | None = None
    members: int = 5
    rows: int = 500
    points: int = 30
    turns: int = 3
    negatives: int = 1
    max_tokens: int = 64
    threads: int = 2
    rungs: int = 3
    eta: float = 3.0
    bfloat16: bool = True


def bench_search(bench: SearchBench, say: Say = lambda line: None) -> dict[str, Any]:
    """Run the benchmark; returns settings, machine, a row per variant, memory and rank correlations.

    Raises:
        BoomError: missing data; a variant that fails.
    """
    where = tempfile.TemporaryDirectory(prefix="boom-ray-bench-") if bench.directory is None else None
    with where or nullcontext() as temporary:
        directory = Path(temporary or bench.directory or ".")
        directory.mkdir(parents=True, exist_ok=True)
        made = make(bench, directory, say)
        return _measure(_Jobs(bench, made, directory, say))


def _measure(jobs: _Jobs) -> dict[str, Any]:
    bench = jobs.bench
    found: dict[str, list[dict[str, Any]]] = {}
    ours = jobs.trials("ours", "float32", bench.points)
    found["ours"] = ours["trials"]
    if bench.bfloat16:
        found["ours, bfloat16"] = jobs.trials("ours, bfloat16", "bfloat16", bench.points)["trials"]
    found["user, one process"] = jobs.loop()
    found["user, two commands"] = jobs.commands()
    return {
        "settings": asdict(bench),
        "machine": machine(),
        "rows": [_row(name, trials, found["ours"]) for name, trials in found.items()],
        "objective": {"rows": ours["trials"][0]["rows"], "sizes": ours["sizes"], "padding": ours["padding"]},
        "memory": jobs.memory(),
        "gradient": jobs.steps(),
        "ranks": {name: _ranks(trials, found["ours"]) for name, trials in found.items() if name.startswith("ours")},
        "trials": found,
    }


class _Jobs:
    """Runs the variants."""

    def __init__(self, bench: SearchBench, made: Made, directory: Path, say: Say) -> None:
        self.bench, self._say = bench, say
        self._job = {**asdict(bench), "made": asdict(made), "texts": made.texts, "out": str(directory / "merged")}
        self._job["precision"] = "float32"

    def trials(self, name: str, precision: str, count: int) -> dict[str, Any]:
        told = self._run("trials", precision=precision, trials=count)
        self._told(name, told["trials"])
        return told

    def loop(self) -> list[dict[str, Any]]:
        found = list(self._run("loop", trials=self.bench.turns + 1)["trials"])[1:]  # its first has slow first calls
        self._told("user, one process", found)
        return found

    def commands(self) -> list[dict[str, Any]]:
        """Two processes for every point, timed from their start to their end."""
        found = []
        for number in range(self.bench.turns):
            started = time.perf_counter()
            merged = self._run("merge", number=number)
            scored = self._run("evaluate")
            seconds = {**merged["seconds"], **scored["seconds"], "wall": time.perf_counter() - started}
            found.append({"point": number, "seconds": seconds, "score": scored["score"]})
        self._told("user, two commands", found)
        return found

    def steps(self) -> dict[str, Any]:
        """Parts of a step of the gradient search."""
        found = self._run("steps")
        self._say(step_line(found))
        return found

    def memory(self) -> dict[str, Any]:
        """Bytes of two actors that live at once, at three moments of each; ``added``: what the second takes, in all."""
        actors: list[subprocess.Popen[str]] = []
        stages, totals = [], []
        try:
            for _ in range(2):
                actors.append(self._start("actor", trials=2))
                stages.append(self._stages(actors[-1]))
                totals.append(sum(_used(process)["pss"] for process in actors))
        finally:
            for process in actors:
                process.kill()
                process.communicate()
        own = stages[1]
        return {
            "actors": stages,
            "added": totals[1] - totals[0],
            "libraries": own["imported"]["uss"],
            "model": sum(f.stat().st_size for f in Path(self._job["made"]["base"]).glob("*.safetensors")),
            "resident": own["built"]["uss"] - own["imported"]["uss"],
            "activations": own["tried"]["uss"] - own["built"]["uss"],
            "members": sum(
                f.stat().st_size for m in self._job["made"]["members"] for f in Path(m).glob("*.safetensors")
            ),
        }

    def _stages(self, process: subprocess.Popen[str]) -> dict[str, dict[str, int]]:
        """USS and PSS when the libraries are imported, when all is built, and after trials, which it then waits at."""
        assert process.stdin is not None
        assert process.stdout is not None
        told: dict[str, dict[str, int]] = {}
        for line in process.stdout:
            told[json.loads(line)] = _used(process)
            if len(told) == 3:
                return told
            process.stdin.write("\n")
            process.stdin.flush()
        raise BoomError(f"the trial actor of the benchmark ended: {process.communicate()[1].strip()[-500:]}")

    def _run(self, kind: str, **given: Any) -> dict[str, Any]:
        process = self._start(kind, **given)
        output, errors = process.communicate()
        if process.returncode:
            raise BoomError(f"benchmark variant '{kind}' failed: {errors.strip()[-500:]}")
        return dict(json.loads(output.splitlines()[-1]))

    def _start(self, kind: str, **given: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "boom_ray.bench.search_jobs", json.dumps({**self._job, "kind": kind, **given})]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.bench.threads), "TOKENIZERS_PARALLELISM": "true"}
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def _told(self, name: str, trials: Sequence[Mapping[str, Any]]) -> None:
        wall = statistics.median(trial["seconds"]["wall"] for trial in trials)
        self._say(f"{name}: {wall:.2f} s per trial ({len(trials)} trials)")


def _used(process: subprocess.Popen[str]) -> dict[str, int]:
    """Bytes: uss, what only this process holds; pss, with its share of what several hold."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {"uss": found["Private_Clean"] + found["Private_Dirty"], "pss": found["Pss"]}


def _row(name: str, trials: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the parts, trials per minute, share that is not encoding, ratio to ours, and how far the score lies
    from ours at the same point."""
    keys = dict.fromkeys(key for trial in trials for key in trial["seconds"])
    parts = {key: statistics.median(trial["seconds"][key] for trial in trials) for key in keys}
    scores = {trial["point"]: trial["score"] for trial in ours}
    return {
        "variant": name,
        "seconds": parts,
        "trials_per_minute": 60 / parts["wall"],
        "rest_share": statistics.median(1 - t["seconds"]["encode"] / t["seconds"]["wall"] for t in trials),
        "speed_ratio": parts["wall"] / statistics.median(trial["seconds"]["wall"] for trial in ours),
        "largest_difference": max(abs(trial["score"] - scores[trial["point"]]) for trial in trials),
    }


def _ranks(trials: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """By rung: seconds of a judgement, and Spearman's correlation of its loss and of its metric over the points with
    those of the full objective in float32."""
    from scipy.stats import spearmanr

    found = []
    for rung in range(len(trials[0]["rungs"])):
        seen = [trial["rungs"][rung] for trial in trials]
        loss = spearmanr([s[0] for s in seen], [trial["value"] for trial in full]).statistic
        metric = spearmanr([s[1] for s in seen], [trial["score"] for trial in full]).statistic
        seconds = statistics.median(s[2] for s in seen)
        found.append({"seconds": seconds, "loss": float(loss), "metric": float(metric)})
    return found


def table(result: Mapping[str, Any]) -> str:
    """The figures as plain text."""
    lines = [f"{'variant':20} {'s/trial':>8} {'trials/min':>11} {'not encoding':>13} {'slower than ours':>17}"]
    lines += [
        f"{row['variant']:20} {row['seconds']['wall']:8.2f} {row['trials_per_minute']:11.2f} "
        f"{100 * row['rest_share']:11.1f} % {row['speed_ratio']:15.2f} ×"
        for row in result["rows"]
    ]
    apart = max(row["largest_difference"] for row in result["rows"])
    rows, padding = result["objective"]["rows"], 100 * result["objective"]["padding"]
    lines.append(f"the same {rows} rows, {padding:.1f} % padding; scores of one point differ by {apart:.1e} at most")
    return "\n".join([*lines, *_rank_lines(result), *_memory_lines(result["memory"]), step_line(result["gradient"])])


def _rank_lines(result: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {count} rows, {texts} texts, {tokens} tokens in {rank['seconds']:.2f} s; rank correlation with the "
        f"full objective {rank['loss']:.3f} (loss), {rank['metric']:.3f} (metric)"
        for name, ranks in result["ranks"].items()
        for (count, texts, tokens), rank in zip(result["objective"]["sizes"], ranks, strict=True)
    ]


def _memory_lines(memory: Mapping[str, Any]) -> list[str]:
    mb = {key: round(value / 1e6) for key, value in memory.items() if isinstance(value, int)}
    return [
        f"a second actor adds {mb['added']} MB: {mb['libraries']} of interpreter and libraries, {mb['resident']} of a "
        f"model of {mb['model']}, {mb['activations']} of activations and tokens; members are shared: {mb['members']}"
    ]
