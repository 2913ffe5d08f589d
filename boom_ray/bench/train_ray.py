"""``boom-ray bench train --ray``: the loop under Ray Train and DeepSpeed beside the same loop on plain torch.

One worker trains the same batches both ways, in turn, each in a process of its own; the seconds of a step come from the
members' step logs, those of the first steps left out. The texts are those of ``bench train``. It is done twice: with a
core left to Ray's own processes, as a worker of a GPU leaves them many, and with a thread on every core. In the latter
case what Ray's processes take (a tenth of a core) stops all threads of the worker, which wait for one another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boom_ray.bench.train import DATASETS, local_model, machine
from boom_ray.config import BoomError, Recipe, parse_recipe

KINDS = ("plain", "ray")
_WARM_STEPS = 2  # of every run, not counted

Variant = tuple[str, int]  # a kind and the worker's threads


@dataclass(frozen=True)
class RayBench:
    """What is measured: ``steps`` steps of ``batch`` rows after the first two, in ``turns`` runs of both kinds.

    Attributes:
        threads: numbers of the worker's threads; default: all cores but one, and all.
    """

    data: str
    model: str
    batch: int = 96
    steps: int = 6
    turns: int = 2
    threads: tuple[int, ...] = ()
    max_tokens: int = 256

    def __post_init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        object.__setattr__(self, "threads", tuple(self.threads) or tuple(sorted({max(1, cores - 1), cores})))


def bench_ray(bench: RayBench, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the benchmark; returns settings, machine, and seconds of a step and share of waiting for both kinds.

    Raises:
        BoomError: missing data; a run that fails.
    """
    from boom_ray.bench.prepared import prepare

    steps: dict[Variant, list[dict[str, Any]]] = {(kind, n): [] for n in bench.threads for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="boom-ray-bench-") as folder:
        prepare(_recipe(bench, bench.threads[0]), Path(folder) / "run", say)
        for turn in range(bench.turns):
            for kind, threads in steps:
                found = _run(bench, (kind, threads), turn, Path(folder))
                steps[kind, threads] += found
                seconds = statistics.median(step["seconds"] for step in found)
                say(f"turn {turn + 1}, {kind}, {threads} threads: {seconds:.2f} s a step")
    return {"settings": asdict(bench), "machine": machine(), "rows": [_row(variant, steps) for variant in steps]}


def _recipe(bench: RayBench, threads: int) -> Recipe:
    return parse_recipe(
        {
            "name": "bench",
            "base": {"model": str(local_model(bench.model)), "max_tokens": bench.max_tokens},
            "corpus": {"datasets": [{"path": str(Path(bench.data) / f"{name}.jsonl.gz")} for name in DATASETS]},
            "bags": {"ratios": [1.0]},
            "train": {
                "batch_size": bench.batch,
                "max_steps": bench.steps + _WARM_STEPS,
                "learning_rate": 2e-5,
                "temperature": 0.05,
                "hard_negatives": 0,
            },
            "resources": {"cpus_per_worker": threads, "max_width": 1},
        },
        origin="bench train",
    )


def _run(bench: RayBench, variant: Variant, turn: int, folder: Path) -> list[dict[str, Any]]:
    """The counted steps of one run, out of its log."""
    kind, threads = variant
    paths = {"run": str(folder / "run"), "out": str(folder / "log")}
    job = {**asdict(bench), **paths, "kind": kind, "threads": [threads], "turn": f"{threads}-{turn}"}
    command = [sys.executable, "-m", "boom_ray.bench.train_ray", json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise BoomError(f"benchmark of the loop, {kind}, failed: {done.stderr.strip()[-800:]}")
    lines = Path(job["out"]).read_text().splitlines()[1 + _WARM_STEPS :]
    return [json.loads(line) for line in lines]


def _row(variant: Variant, steps: Mapping[Variant, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Every step is one of the same batch in each run, so each is compared with itself."""
    kind, threads = variant
    own, plain = steps[variant], steps["plain", threads]
    seconds = sum(step["seconds"] for step in own)
    ratios = [step["seconds"] / other["seconds"] for step, other in zip(own, plain, strict=True)]
    return {
        "variant": kind,
        "threads": threads,
        "step_seconds": seconds / len(own),
        "ratio": statistics.median(ratios),
        "stall_share": sum(step["waited"] for step in own) / seconds,
        "tokens_per_second": sum(step["tokens"] for step in own) / seconds,
        "steps": len(own),
    }


def table(result: Mapping[str, Any]) -> str:
    """The rows as plain text."""
    lines = [
        f"{'loop':22} {'threads':>7} {'s a step':>9} {'× plain':>8} {'waiting %':>10} {'tokens/s':>9} {'steps':>6}"
    ]
    names = {"plain": "plain torch", "ray": "Ray Train, DeepSpeed"}
    for row in result["rows"]:
        cells = f"{row['step_seconds']:9.3f} {row['ratio']:8.3f} {100 * row['stall_share']:10.3f}"
        lines.append(
            f"{names[row['variant']]:22} {row['threads']:7} {cells} {row['tokens_per_second']:9.0f} {row['steps']:6}"
        )
    return "\n".join(lines)


def main(job: Mapping[str, Any]) -> None:
    """Train the run's member once, as a member of its own name; its log is copied to ``job["out"]``."""
    from boom_ray.ledger import Key, Ledger
    from boom_ray.plan import derive_keys
    from boom_ray.runs import look
    from boom_ray.train.work import member_work

    bench = RayBench(**{field.name: job[field.name] for field in dataclasses.fields(RayBench)})
    recipe, ledger = _recipe(bench, bench.threads[0]), Ledger(job["run"])
    task, batches = member_work(recipe, ledger, derive_keys(recipe, look(recipe)), 0)
    key = Key("members", f"{job['kind']}-{job['turn']}", task.key.identity)
    task = dataclasses.replace(task, key=key)
    if job["kind"] == "plain":
        from boom_ray.train.member import train_plain

        train_plain(task, list(batches))
    else:
        from boom_ray.cluster.session import ray_session
        from boom_ray.resources import Bundle, Placement
        from boom_ray.train.ensemble import Room, train_ensemble

        with ray_session():
            room = Room(Bundle(recipe.resources.cpus_per_worker, 0.0))
            failed = train_ensemble(ledger, {task.name: (task, batches)}, [Placement(task.name, 1, 0.0, 1.0)], room)
        if failed:
            raise BoomError(f"the member of Ray failed: {failed[task.name]}")
    Path(job["out"]).write_bytes(task.log_file.read_bytes())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
