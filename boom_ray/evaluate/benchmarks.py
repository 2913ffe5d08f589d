"""mteb's benchmarks and single tasks by name, as evaluation sets beside local ones."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from boom_ray.catalogue import mteb_tasks
from boom_ray.config import BoomError
from boom_ray.evaluate.sets import Domain, EvalSet
from boom_ray.evaluate.settings import snake_case

_UNKNOWN_SIZE = 1e6


def find_tasks(
    benchmarks: Sequence[str] = (), tasks: Sequence[str] = (), trained: Collection[str] | None = None
) -> list[EvalSet]:
    """Tasks of mteb's registry, with the splits and subsets that the benchmark asks for; all of a single task's.

    A task that several benchmarks have is there for each of them, so that each one's mean is whole: the second is
    called ``TASK@BENCHMARK``, and costs nothing where splits and subsets are the same. Private tasks of a benchmark
    are left out (:func:`left_out`); one that is asked for by its name is not.

    Args:
        trained: names of the datasets trained on, ours or mteb's; None: not known, so that every task counts as
            out-of-domain.

    Raises:
        BoomError: an unknown name (with the nearest ones), or a task that needs more than text.
    """
    asked = [(task, name) for name in benchmarks for task in _benchmark(name).tasks if _public(task)]
    asked += [(_task(name), "") for name in tasks]
    near = _trained_tasks(trained)
    found: dict[str, EvalSet] = {}
    for task, benchmark in asked:
        entry = _entry(task, benchmark, near)
        name = entry.task if entry.task not in found else f"{entry.task}@{benchmark}"
        if name in found or (not benchmark and entry.task in found):
            continue  # asked for twice, or alone and as a part of a benchmark
        found[name] = EvalSet(**{**entry.__dict__, "name": name})
    return list(found.values())


def left_out(benchmarks: Sequence[str]) -> list[str]:
    """Names of the private tasks of these benchmarks, whose data only their owners have."""
    return [task.metadata.name for name in benchmarks for task in _benchmark(name).tasks if not _public(task)]


def zero_shot_share(sets: Sequence[EvalSet], trained: Collection[str] | None) -> float | None:
    """Share 0..1 of the sets that the model was not trained for; None: its training datasets are not known.

    What mteb's leaderboard calls zero-shot, for local sets too.
    """
    if trained is None or not sets:
        return None
    return sum(entry.domain == "out_of_domain" for entry in sets) / len(sets)


def characters(entry: EvalSet) -> float:
    """About how many characters a task has, by mteb's own statistics; 1e6 where mteb has none. Loads no data."""
    stats = _task(entry.task).metadata.descriptive_stats or {}
    total = 0.0
    for split in entry.splits:
        known = stats.get(split, {})
        parts = known.get("hf_subset_descriptive_stats") or {}
        chosen = [parts[subset] for subset in entry.subsets if subset in parts] or [known]
        total += sum(_length(part) for part in chosen)
    return total or _UNKNOWN_SIZE


def _length(stats: Any) -> float:
    if stats.get("number_of_characters"):
        return float(stats["number_of_characters"])
    texts = [value for key, value in stats.items() if key.endswith("text_statistics") and value]
    return float(sum(value.get("total_text_length", 0) for value in texts))


def _benchmark(name: str) -> Any:
    from mteb.benchmarks.get_benchmark import get_benchmark, get_benchmarks

    try:
        return get_benchmark(name)
    except KeyError:
        known = [alias for b in get_benchmarks() for alias in (b.name, *b.aliases)]
        raise BoomError(f"mteb has no benchmark '{name}'; {_nearest(name, known)}") from None


def _task(name: str) -> Any:
    import mteb

    try:
        return mteb.get_task(name)
    except KeyError:
        from mteb.get_tasks import TASK_LIST

        known = [task.metadata.name for task in TASK_LIST]
        raise BoomError(f"mteb has no task '{name}'; {_nearest(name, known)}") from None


def _nearest(name: str, known: Iterable[str]) -> str:
    by_case = {other.lower(): other for other in known}
    near = [by_case[n] for n in difflib.get_close_matches(name.lower(), list(by_case), n=3, cutoff=0.5)]
    if not near:
        return f"it knows {len(by_case)} others, none with a name like it."
    return f"did you mean {' or '.join(repr(other) for other in near)}?"


def _public(task: Any) -> bool:
    return bool(task.metadata.is_public)


def _trained_tasks(trained: Collection[str] | None) -> set[str]:
    """mteb's names of the tasks that these datasets train for, with what mteb knows to be made from them."""
    if not trained:
        return set()
    from mteb.models.model_meta import ModelMeta

    names = {*trained, *mteb_tasks(trained)}
    return set(ModelMeta.create_empty({"name": "boom_ray/model", "training_datasets": names}).get_training_datasets())


def _entry(task: Any, benchmark: str, trained: set[str]) -> EvalSet:
    metadata = task.metadata
    if set(metadata.modalities) != {"text"}:
        needed = ", ".join(sorted(metadata.modalities))
        where = f" of benchmark '{benchmark}'" if benchmark else ""
        raise BoomError(f"task '{metadata.name}'{where} needs a model of {needed}; models here read text only.")
    languages = {language.split("-")[0] for language in task.languages}
    domain: Domain = "in_domain" if metadata.name in trained else "out_of_domain"
    return EvalSet(
        name=metadata.name,
        path=None,
        task_type=snake_case(metadata.type),
        domain=domain,
        metric=metadata.main_score,
        language=languages.pop() if len(languages) == 1 else "multilingual",
        digest=_revision(task),
        benchmark=benchmark,
        task=metadata.name,
        splits=tuple(task.eval_splits),
        subsets=tuple(task.hf_subsets) if not task.is_aggregate else ("default",),
    )


def _revision(task: Any) -> str:
    """mteb's revision of a task's dataset; of a task that is made of tasks, a digest of theirs."""
    if not task.is_aggregate:
        return str(task.metadata.revision)
    parts = "\n".join(f"{part.metadata.name} {_revision(part)}" for part in task.metadata.tasks)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]
