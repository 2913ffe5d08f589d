"""Sets x models as a queue: scored by Ray actors on all devices of a cluster, or by this machine alone without Ray.

A worker holds one model and takes the next set of it, the longest first; :mod:`boom_ray.evaluate.board` says who does
what. Results are kept as soon as they are there, so a run that was killed goes on with what is missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from boom_ray.config import BoomError
from boom_ray.evaluate.board import Board, Job
from boom_ray.evaluate.crew import Crew, Told, drive
from boom_ray.evaluate.downloads import require_data
from boom_ray.evaluate.here import Here
from boom_ray.evaluate.results import cached, defined, model_meta, model_revision, open_cache
from boom_ray.evaluate.sets import EvalSet
from boom_ray.evaluate.worker import ModelToScore, Work

_STARTUP = 10.0  # seconds until another process has loaded what it needs
_HERE = 8  # threads of this process at most: more would wait for the interpreter
_PER_GPU = 2  # threads: while mteb computes for one, the other encodes
_CHARACTERS = 1e6  # of text that are worth another actor, when there are fewer jobs than places
_CPU_TOKENS = 1024  # of one forward pass on a CPU: without gradients less fits its caches better than in training
_TEXT = 500.0  # characters of a text, where only their number is known
_FLOPS = 120e9  # of one core, as far as choosing between threads and processes goes


def evaluate_many(
    models: Sequence[ModelToScore],
    sets: Sequence[EvalSet],
    *,
    chunk_tokens: int = 16384,
    actors: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, float]]:
    """Score models on sets; only what is missing is run.

    Args:
        models: directories, and where their results are kept.
        sets: with cap and prompts, from :func:`boom_ray.evaluate.settings.asked`.
        chunk_tokens: padded tokens per forward pass at most.
        actors: Ray actors; 0: this machine without Ray; default: as many as fit where a cluster is named or running or
            this machine has several GPUs, else 0.
        say: receives one line per score.

    Returns:
        For each model the main score of every set, 0..1, as :func:`boom_ray.evaluate.score.evaluate` does.

    Raises:
        BoomError: a model or set cannot be read, or sets failed; what was scored is kept.
    """
    work = Work(tuple(_known(model) for model in models), tuple(anywhere(sets)), chunk_tokens)
    scores = at_hand(work)
    jobs = [Job(m, s) for m in range(len(models)) for s in range(len(sets)) if sets[s].name not in scores[m]]
    if len(jobs) < len(models) * len(sets):
        say(f"{len(models) * len(sets) - len(jobs)} of {len(models) * len(sets)} scores are there already")
    failed: list[str] = []

    def told(end: Told) -> None:
        name, model = sets[end.job.entry].name, work.models[end.job.model]
        if end.error is None:
            score = scores[end.job.model][name] = defined(end.value)
            say(f"{Path(model.directory).name}: {name} {100 * score:.2f} ({_count(scores)} of {_all(work)})")
        else:
            failed.append(f"{name}: {type(end.error).__name__}: {str(end.error).splitlines()[0][:300]}")

    if jobs:
        score_jobs(work, jobs, told, actors)
    if failed:
        raise BoomError(f"{len(failed)} sets could not be scored; the others are kept.\n  " + "\n  ".join(failed))
    return [{entry.name: scores[m][entry.name] for entry in sets} for m in range(len(models))]


def _count(scores: Sequence[Mapping[str, float]]) -> int:
    return sum(map(len, scores))


def _all(work: Work) -> int:
    return len(work.models) * len(work.sets)


def _known(model: ModelToScore) -> ModelToScore:
    """A model with absolute paths, as actors may run elsewhere, and its revision, which costs reading all of it."""
    directory, results = Path(model.directory), Path(model.results)
    if not directory.is_dir():
        raise BoomError(f"model {directory} is not a directory.")
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") and not results.is_absolute():
        raise BoomError(
            f"results folder {results} is relative, but a job's working directory is a temporary copy that is deleted. "
            f"Give an absolute --results on storage that all nodes share."
        )
    name, revision = model.name or directory.resolve().name, model.revision or model_revision(directory)
    return ModelToScore(str(directory.absolute()), str(results.absolute()), name, revision, model.trained)


def anywhere(sets: Sequence[EvalSet]) -> list[EvalSet]:
    """The sets with absolute paths."""
    return [entry if entry.path is None else replace(entry, path=entry.path.absolute()) for entry in sets]


def at_hand(work: Work) -> list[dict[str, float]]:
    """For each model the scores that are kept already."""
    if not any(Path(model.results).is_dir() for model in work.models):
        return [{} for _ in work.models]  # without the seconds that importing mteb takes
    found = []
    for model in work.models:
        cache = open_cache(model.results)
        meta = model_meta(Path(model.directory), model.name, model.revision, model.trained)
        scores = {entry.name: cached(cache, meta, entry) for entry in work.sets}
        found.append({name: defined(score) for name, score in scores.items() if score is not None})
    return found


def score_jobs(work: Work, jobs: Sequence[Job], told: Callable[[Told], None], actors: int | None = None) -> None:
    """Carry out jobs of ``work``; ``told`` hears of each that has ended. ``actors`` as in :func:`evaluate_many`.

    Raises:
        BoomError: a mistake in a model or a set, data that are missing offline, or actors that die again and again.
    """
    require_data([work.sets[i] for i in sorted({job.entry for job in jobs}) if i < len(work.sets)])
    costs = {job: _cost(work, job) for job in jobs if job.entry < len(work.sets)}
    longest = max(costs.values(), default=1.0)
    costs |= {job: longest for job in jobs if job not in costs}  # of `extra` nothing is known: not the last to begin
    useful = len(jobs) + int(sum(costs.values()) / _CHARACTERS)
    names = [entry.result_name for entry in work.sets]
    files = {i: name for i, name in enumerate(names) if names.count(name) > 1}

    def with_crew(crew: Crew, chunk_tokens: int) -> None:
        with closing(crew):
            drive(Board(costs, crew.count, chunk_tokens, files), crew, told)

    if actors == 0 or (actors is None and _alone()):
        crew, on_cpu = _here(work, costs, useful)
        with_crew(crew, min(work.chunk_tokens, _CPU_TOKENS) if on_cpu else work.chunk_tokens)
        return
    from boom_ray.cluster.autoscale import nodes_with
    from boom_ray.cluster.session import ray_session
    from boom_ray.evaluate.actors import Actors, places
    from boom_ray.resources import Bundle

    with ray_session():
        nodes = nodes_with(Bundle(1, 1.0), Bundle(1, 0.0))
        most, bundle = places(nodes, max(_weights(model) for model in work.models))
        team = Actors(work, min(actors or useful, most), bundle)
        with_crew(team, work.chunk_tokens if bundle.gpus else min(work.chunk_tokens, _CPU_TOKENS))


def _alone() -> bool:
    """Whether there is nothing that Ray would have to bring together."""
    import torch

    running = sys.modules.get("ray")
    cluster = os.environ.get("RAY_ADDRESS") or (running and running.is_initialized())
    return not cluster and torch.cuda.device_count() < 2


def _here(work: Work, costs: Mapping[Job, float], useful: int) -> tuple[Here, bool]:
    """A crew of this machine, and whether it encodes on a CPU; processes join where they are worth their start."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return Here(work, min(_PER_GPU, useful)), False
    cores = len(os.sched_getaffinity(0))
    # four characters a token; four bytes a weight, two operations each, and half of a small model are embeddings
    flops = sum(cost / 4 * _weights(work.models[job.model]) / 4 for job, cost in costs.items())
    if work.extra is not None or flops / (_FLOPS * cores) < 2 * _STARTUP:
        count = min(cores, _HERE, useful)
        return Here(work, count, cores=1 if count > 1 else None), True
    from boom_ray.evaluate.actors import places

    machine = {"CPU": float(cores), "memory": float(psutil.virtual_memory().available)}
    most, bundle = places([machine], max(_weights(model) for model in work.models))
    return Here(work, 1, min(most, useful) - 1, bundle.cpus), True


def _weights(model: ModelToScore) -> int:
    """Bytes of a model's weights."""
    return sum(file.stat().st_size for file in Path(model.directory).glob("*.safetensors"))


def _cost(work: Work, job: Job) -> float:
    """Characters of a set, or something like it."""
    entry = work.sets[job.entry]
    if entry.path is None:
        from boom_ray.evaluate.benchmarks import characters

        return characters(entry)
    files = [file for file in entry.path.iterdir() if file.is_file()]
    whole = float(sum(file.stat().st_size * (3 if file.suffix == ".gz" else 1) for file in files))
    return whole if entry.cap is None else min(whole, _TEXT * entry.cap)
