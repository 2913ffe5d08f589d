"""What ``boom-ray bench search`` runs, each in a process of its own; prints one line of JSON.

``trials`` judges points in a resident model. ``loop`` is what a user does today: for each point merge to disk, load the
model with sentence-transformers, encode the texts of the same rows, and take the same metrics; ``merge`` and
``evaluate`` are its two halves as commands. ``actor`` is a trial actor whose memory is measured from outside; ``steps``
are those of the gradient search.
"""

from __future__ import annotations

import gc
import json
import pickle
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boom_ray.bench.search_made import Made, settings
from boom_ray.search.objective_rows import halving_shares
from boom_ray.search.points import Point


def trials(job: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of every trial's time, values and scores by rung."""
    resident, objective = build(job, shares=halving_shares(job["rungs"], job["eta"]))
    points = [Point.from_json(raw) for raw in json.loads(Path(job["made"]["points"]).read_text())]
    from boom_ray.search.objective import judge_point

    judge_point(resident, objective, points[0], 0)  # the first call of every kernel is not counted
    found = []
    for number, point in enumerate(points[: job["trials"]]):
        started = time.perf_counter()
        judged = judge_point(resident, objective, point)
        wall = time.perf_counter() - started
        lower = [objective.judge(resident.encoder, rung) for rung in range(job["rungs"] - 1)]
        found.append(
            {
                "point": number,
                "seconds": {**judged.seconds, "wall": wall},
                "value": judged.value,
                "score": judged.score,
                "rows": judged.rows,
                "rungs": [[j.value, j.score, j.seconds["total"]] for j in (*lower, judged)],
            }
        )
    return {"trials": found, "sizes": objective.sizes, "padding": objective.padding}


def build(job: Mapping[str, Any], **given: Any) -> tuple[Any, Any]:
    """A resident model and its objective, as a trial actor builds them."""
    resident = _resident(job)
    return resident, _objective(job, resident, **given)


def _resident(job: Mapping[str, Any]) -> Any:
    import torch

    from boom_ray.search.resident import MergeSpec, Resident

    torch.set_num_threads(job["threads"])
    made = job["made"]
    spec = MergeSpec(
        tuple(map(Path, made["members"])), Path(made["base"]), Path(made["grams"]), "multislerp", task_vectors=False
    )
    return Resident(spec, device="cpu", threads=job["threads"], precision=job["precision"])


def _objective(job: Mapping[str, Any], resident: Any, **given: Any) -> Any:
    from boom_ray.search.objective import Objective

    source = pickle.loads(Path(job["made"]["source"]).read_bytes())
    objective = Objective(source, settings(job["rows"], precision=job["precision"], **given))
    objective.take_base(resident.encoder)
    return objective


def loop(job: Mapping[str, Any]) -> dict[str, Any]:
    """Merge, load and evaluate every point in one process."""
    return {"trials": [_both(job, number) for number in range(job["trials"])]}


def _both(job: Mapping[str, Any], number: int) -> dict[str, Any]:
    merged, scored = merge({**job, "number": number}), evaluate(job)
    seconds = {**merged["seconds"], **scored["seconds"]}
    return {"point": number, "seconds": {**seconds, "wall": sum(seconds.values())}, "score": scored["score"]}


def merge(job: Mapping[str, Any]) -> dict[str, Any]:
    """One point to disk, from a mergekit recipe: no Gram matrices are known, and nothing is flushed."""
    from boom_ray.merge.stream import MergeOptions
    from boom_ray.merge.stream import merge as merge_to_disk

    started = time.perf_counter()
    recipe = Made(**{**job["made"], "members": tuple(job["made"]["members"])}).recipes[job["number"]]
    options = MergeOptions(workers=job["threads"], mmap=True, overwrite=True, durable=False)
    merge_to_disk(recipe, job["out"], options)
    return {"seconds": {"merge": time.perf_counter() - started}}


def evaluate(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load a model with sentence-transformers and score it on the texts of the rows."""
    import torch
    from sentence_transformers import SentenceTransformer

    from boom_ray.search.objective_metrics import RowMetric

    torch.set_num_threads(job["threads"])
    started = time.perf_counter()
    model = SentenceTransformer(job["out"], device="cpu")
    loaded = time.perf_counter()
    source, texts = pickle.loads(Path(job["made"]["source"]).read_bytes()), json.loads(Path(job["texts"]).read_text())
    scores, encoding = {}, 0.0
    for name, found in texts.items():
        before = time.perf_counter()
        sides = [
            model.encode(found[side], convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
            for side in ("queries", "candidates")
        ]
        encoding += time.perf_counter() - before
        metric = RowMetric(source.batch(name, found["rows"]), found["task_type"], "ndcg")
        if metric.known:
            scores[name] = metric.samples(torch.cat(sides)).score()
    rest = time.perf_counter() - loaded - encoding
    seconds = {"load": loaded - started, "encode": encoding, "score": rest}
    return {"seconds": seconds, "score": sum(scores.values()) / len(scores)}


def actor(job: Mapping[str, Any]) -> dict[str, Any]:
    """Tell when the libraries are imported, when a model holds a merge, and when trials have run; wait at each.

    A model is loaded and let go first: most of transformers is only imported then.
    """
    import boom_ray.search.objective
    import boom_ray.search.resident  # noqa: F401
    from boom_ray.encoder import Encoder
    from boom_ray.merge.engine import load_kernels
    from boom_ray.search.objective import judge_point
    from boom_ray.train.memory import return_freed

    load_kernels()
    Encoder.load(job["made"]["base"], device="cpu")
    gc.collect()
    return_freed()
    _stage("imported")
    resident = _resident(job)
    points = [Point.from_json(raw) for raw in json.loads(Path(job["made"]["points"]).read_text())]
    resident.apply(points[0])
    _stage("built")
    objective = _objective(job, resident, shares=(1.0,))  # losses are relative to that point: only memory counts here
    for point in points[: job["trials"]]:
        judge_point(resident, objective, point)
    _stage("tried")
    return {}


def steps(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a step of the gradient search costs."""
    from boom_ray.bench.search_steps import measure_steps

    resident, _ = build(job, shares=(1.0,))
    source = pickle.loads(Path(job["made"]["source"]).read_bytes())
    point = Point.from_json(json.loads(Path(job["made"]["points"]).read_text())[0])
    return measure_steps(resident, source, settings(job["rows"]), point)


def _stage(name: str) -> None:
    print(json.dumps(name), flush=True)
    sys.stdin.readline()


KINDS = {"trials": trials, "loop": loop, "merge": merge, "evaluate": evaluate, "actor": actor, "steps": steps}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(KINDS[given["kind"]](given)))
