"""What ``boom-ray bench evaluate`` runs, each in a process of its own; prints the scores of every model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boom_ray.evaluate.sets import EvalSet, find_sets
from boom_ray.evaluate.settings import asked


def theirs(job: Mapping[str, Any], sets: Sequence[EvalSet]) -> list[dict[str, float]]:
    """mteb and sentence-transformers with their defaults."""
    import mteb
    from sentence_transformers import SentenceTransformer

    from boom_ray.evaluate.tasks import build_task

    model = SentenceTransformer(job["models"][0])
    found = mteb.evaluate(
        model, [build_task(entry) for entry in sets], cache=None, show_progress_bar=False, co2_tracker=False
    )
    return [{result.task_name: float(result.scores["test"][0]["main_score"]) for result in found.task_results}]


def ours(job: Mapping[str, Any], sets: Sequence[EvalSet]) -> list[dict[str, float]]:
    from boom_ray.evaluate.queue import ModelToScore, evaluate_many

    models = [ModelToScore(model, job["results"], name=Path(model).name) for model in job["models"]]
    return evaluate_many(models, sets, actors=job["actors"])


def main(job: Mapping[str, Any]) -> list[dict[str, float]]:
    sets = asked(find_sets([job["sets"]], None), job["cap"])
    return theirs(job, sets) if job["kind"] == "mteb" else ours(job, sets)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
