"""``boom-ray bench learn``: scores of one member on its own datasets, before it trains and while it does.

The stages of a run make the corpus (without texts of the evaluation), its tokens and one bag with all rows; then the
loop that trains members runs on plain torch in this process, leaves its weights every so many steps, and mteb scores
them. What ``directory`` holds already is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from boom_ray.bench.train import local_model, machine
from boom_ray.config import Recipe, parse_recipe

if TYPE_CHECKING:
    from boom_ray.evaluate.sets import EvalSet
    from boom_ray.stages.preparation import Run

Say = Callable[[str], None]


@dataclass(frozen=True)
class LearnBench:
    """What is trained and how often it is scored.

    Attributes:
        data: directory with ``train`` and ``eval/in_domain``; directory: of everything that is made.
        max_tokens: of a text, in training and in scoring, also of the zero-shot model.
        cap: texts of an evaluation set at most, the same for all models; None: whole sets.
    """

    data: str
    directory: str
    model: str
    steps: int = 300
    every: int = 100
    batch: int = 64
    max_tokens: int = 64
    learning_rate: float = 1e-4
    temperature: float = 0.05
    hard_negatives: int = 3
    cap: int | None = 1200
    threads: int = 2


def bench_learn(bench: LearnBench, say: Say = lambda line: None) -> dict[str, Any]:
    """Train and score; returns settings, machine, one row per scored step, and what the steps were.

    Raises:
        BoomError: missing or bad data.
    """
    from boom_ray.bench.prepared import prepare

    run = prepare(_recipe(bench), Path(bench.directory), say)
    sets = _sets(run)
    rows = [_scored(bench, run, sets, 0, run.path(run.keys.start), say)]
    training = _train(bench, run, say)
    rows += [_scored(bench, run, sets, step, _weights(run, step), say) for step in _moments(bench)]
    return {"settings": asdict(bench), "machine": machine(), "rows": rows, "training": training}


def _recipe(bench: LearnBench) -> Recipe:
    return parse_recipe(
        {
            "name": "learn",
            "base": {"model": str(local_model(bench.model)), "max_tokens": bench.max_tokens},
            "corpus": {"datasets": [{"path": str(Path(bench.data) / "train")}]},
            "bags": {"ratios": [1.0]},
            "train": {
                "schedule": "batch_shuffle",
                "batch_size": bench.batch,
                "max_steps": bench.steps,
                "learning_rate": bench.learning_rate,
                "temperature": bench.temperature,
                "hard_negatives": bench.hard_negatives,
            },
            "resources": {"cpus_per_worker": bench.threads},
            "evaluate": {"sets": [str(Path(bench.data) / "eval" / "in_domain")], "cap": bench.cap},
        },
        origin="bench learn",
    )


def _sets(run: Run) -> list[EvalSet]:
    from boom_ray.evaluate.sets import find_sets
    from boom_ray.train.rows import read_rows

    return find_sets(run.recipe.evaluate.sets, read_rows(run.ledger, run.keys).names)


def _moments(bench: LearnBench) -> range:
    return range(bench.every, bench.steps + 1, bench.every)


def _weights(run: Run, step: int) -> Path:
    return run.ledger.scratch("learn") / f"{run.keys.members[0].identity}-step-{step}"


def _train(bench: LearnBench, run: Run, say: Say) -> dict[str, Any]:
    """Train the member, unless all its weights are there; returns the summary of its steps."""
    import torch

    from boom_ray.data.batches import local_feed
    from boom_ray.train.cache import batch_encoder
    from boom_ray.train.engine import PlainEngine
    from boom_ray.train.loop import LoopSettings, train
    from boom_ray.train.member import StepLog, load, open_store
    from boom_ray.train.meter import StepRecord
    from boom_ray.train.work import member_work

    told = _weights(run, bench.steps).with_suffix(".json")
    if told.is_file():
        return dict(json.loads(told.read_text()))
    task, batches = member_work(run.recipe, run.ledger, run.keys, 0)
    with StepLog(task) as log:
        encoder = load(task, "cuda" if torch.cuda.is_available() else "cpu")
        engine = PlainEngine(batch_encoder(encoder, task.train), task.train)

        def after(record: StepRecord) -> None:
            log(record)
            if record.step + 1 in _moments(bench):
                encoder.save(_weights(run, record.step + 1))
                say(f"step {record.step + 1}: {record.rates['texts_per_second']:.1f} texts/s, loss {record.loss:.3f}")

        settings = LoopSettings(task.name, task.train, task.steps, task.seed)
        train(engine, local_feed(batches, open_store(task), task.draw), settings, after)
    summary = log.summary()
    told.write_text(json.dumps(summary))
    return summary


def _scored(bench: LearnBench, run: Run, sets: list[EvalSet], step: int, directory: Path, say: Say) -> dict[str, Any]:
    """One row: the step, the mean over all sets in points, that of each task type, and every score."""
    from boom_ray.evaluate.score import evaluate

    results = run.ledger.scratch("learn", "scores")
    scores = evaluate(directory, sets, results=results, cap=bench.cap, name=f"step-{step}")
    points = {name: 100 * score for name, score in scores.items()}
    kinds = sorted({entry.task_type for entry in sets})
    means = {kind: mean(points[s.name] for s in sets if s.task_type == kind) for kind in kinds}
    say(f"step {step}: in-domain mean {mean(points.values()):.2f} points over {len(points)} sets")
    return {"step": step, "mean": mean(points.values()), "by_task_type": means, "scores": points}


def table(result: Mapping[str, Any]) -> str:
    """The learning curve as plain text."""
    rows = result["rows"]
    kinds = list(rows[0]["by_task_type"])
    lines = [f"{'step':>6} {'mean':>8} {'gain':>7}" + "".join(f" {kind:>14}" for kind in kinds)]
    for row in rows:
        cells = "".join(f" {row['by_task_type'][kind]:14.2f}" for kind in kinds)
        lines.append(f"{row['step']:6} {row['mean']:8.2f} {row['mean'] - rows[0]['mean']:+7.2f}{cells}")
    speed = result["training"]["measured"]
    lines.append(
        f"points; {speed['texts_per_second']:.1f} texts/s, {speed['tokens_per_second']:.0f} tokens/s, "
        f"padding {100 * speed['padding_share']:.1f} %, waiting for data {100 * speed['stall_share']:.2f} %"
    )
    return "\n".join(lines)
