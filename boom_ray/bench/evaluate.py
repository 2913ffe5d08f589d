"""``boom-ray bench evaluate``: our queue beside ``mteb.evaluate(SentenceTransformer(DIR), tasks)`` on the same sets.

Every variant is a process of its own, timed from its start to its end, imports and the start of Ray among it, in turn;
figures are medians over turns. *second model* is what scoring two models takes beyond scoring one; the second has
the first's weights with a little noise, so it shares texts and tokenizer.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boom_ray.bench.train import local_model, machine
from boom_ray.config import BoomError

Say = Callable[[str], None]


@dataclass(frozen=True)
class EvaluateBench:
    """What is measured.

    Attributes:
        sets: folder of evaluation sets; model: directory or hub name.
        cap: texts per set at most; None: whole sets.
        actors: of ours, as in ``evaluate_many``.
    """

    sets: str
    model: str
    turns: int = 1
    cap: int | None = None
    actors: int | None = None


def bench_evaluate(bench: EvaluateBench, say: Say = lambda line: None) -> dict[str, Any]:
    """Run the benchmark; returns settings, machine, a row per variant, and the largest difference of two scores.

    Raises:
        BoomError: missing data; a variant that fails.
    """
    model = local_model(bench.model)
    with tempfile.TemporaryDirectory(prefix="boom-ray-bench-") as folder:
        other = Path(folder) / "other"
        _perturbed(model, other)
        variants: dict[str, tuple[str, list[Path]]] = {
            "mteb": ("mteb", [model]),
            "ours": ("ours", [model]),
            "ours, two models": ("ours", [model, other]),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        scores: dict[str, dict[str, float]] = {}
        for turn in range(bench.turns):
            for name, (kind, models) in variants.items():
                results = Path(folder) / "results"
                took, found = _job(bench, kind, models, results)
                shutil.rmtree(results, ignore_errors=True)
                seconds[name].append(took)
                scores[name] = found[0]
                say(f"turn {turn + 1} {name}: {took:.1f} s")
    return {
        "settings": asdict(bench),
        "machine": machine(),
        "rows": _rows({name: statistics.median(took) for name, took in seconds.items()}),
        "turns": seconds,
        "scores": scores["ours"],
        "largest_difference": max(abs(scores["ours"][name] - value) for name, value in scores["mteb"].items()),
    }


def _rows(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    both = seconds["ours, two models"]
    second = {"variant": "second model", "seconds": both - seconds["ours"]}
    rows: list[dict[str, Any]] = [{"variant": name, "seconds": took} for name, took in seconds.items()] + [second]
    for row in rows[1:2] + rows[3:]:
        row["speed_ratio"] = seconds["mteb"] / row["seconds"]
    return rows


def _job(
    bench: EvaluateBench, kind: str, models: Sequence[Path], results: Path
) -> tuple[float, list[dict[str, float]]]:
    """(seconds of the whole process, scores of each model)."""
    job = {**asdict(bench), "kind": kind, "models": [str(model) for model in models], "results": str(results)}
    command = [sys.executable, "-m", "boom_ray.bench.evaluate_jobs", json.dumps(job)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    took = time.perf_counter() - started
    if done.returncode:
        raise BoomError(f"benchmark variant '{kind}' failed: {done.stderr.strip()[-500:]}")
    return took, json.loads(done.stdout.splitlines()[-1])


def _perturbed(model: Path, out: Path) -> None:
    """A copy of a model whose weights differ by a thousandth."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in model.glob("*.safetensors"):
        weights = load_file(file)
        noise = torch.Generator().manual_seed(0)
        for name, values in weights.items():
            if values.is_floating_point():
                weights[name] = values * (1 + 1e-3 * torch.randn(values.shape, generator=noise)).to(values.dtype)
        save_file(weights, out / file.name, metadata={"format": "pt"})


def table(result: Mapping[str, Any]) -> str:
    """The rows as plain text."""
    lines = [f"{'variant':18} {'seconds':>9} {'× mteb':>8}"]
    for row in result["rows"]:
        ratio = f"{row['speed_ratio']:8.2f}" if "speed_ratio" in row else f"{'-':>8}"
        lines.append(f"{row['variant']:18} {row['seconds']:9.1f} {ratio}")
    lines.append(f"{len(result['scores'])} sets; largest difference of a score: {result['largest_difference']:.1e}")
    return "\n".join(lines)
