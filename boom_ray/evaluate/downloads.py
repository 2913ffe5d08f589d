"""Datasets of mteb's tasks on this machine: what is missing, fetched ahead, and named before anything runs offline."""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.evaluate.cutting import refuse_caps
from boom_ray.evaluate.sets import EvalSet
from boom_ray.model_files import first_line

_PATCH = threading.RLock()


def offline() -> bool:
    """Nothing may be downloaded: HF_HUB_OFFLINE or HF_DATASETS_OFFLINE was set when the libraries were imported."""
    import datasets

    return bool(datasets.config.HF_HUB_OFFLINE)


def missing_data(sets: Sequence[EvalSet]) -> dict[str, str]:
    """``{set: what is not in the caches}`` of the tasks of mteb's registry. Loads and downloads nothing."""
    found = {}
    for entry in sets:
        if entry.path is None and (lacking := [part for task in _tasks(entry) for part in _lacking(task)]):
            found[entry.name] = ", ".join(dict.fromkeys(lacking))
    return found


def require_data(sets: Sequence[EvalSet]) -> None:
    """Check what can be known of mteb's tasks before anything runs: their caps, and offline, that their data are here.

    Raises:
        BoomError: some tasks cannot be cut, or some data are not here; all of them are named.
    """
    of_mteb = [entry for entry in sets if entry.path is None]
    if capped := [task for entry in of_mteb if entry.cap is not None for task in _tasks(entry)]:
        refuse_caps(capped)
    if not of_mteb or not offline():
        return
    if missing := missing_data(sets):
        shown = "".join(f"\n  {name}: {what}" for name, what in missing.items())
        raise BoomError(
            f"offline, and the datasets of {len(missing)} tasks are not on this machine:{shown}\n"
            "Fetch them where there is a network with `boom-ray evaluate --prefetch`, or copy the cache (HF_HOME)."
        )


def prefetch(sets: Sequence[EvalSet], say: Callable[[str], None]) -> None:
    """Download what is missing of the tasks' data, by mteb's own loaders, one task after the other.

    Raises:
        BoomError: the hub cannot be reached, or some could not be had; all of them are named, with the reason.
    """
    from boom_ray.evaluate.tasks import build_task

    missing = missing_data(sets)
    failed: dict[str, str] = {}
    todo = [entry for entry in sets if entry.name in missing]
    for number, entry in enumerate(todo):
        say(f"{number + 1} of {len(todo)}: {entry.name} ({missing[entry.name]})")
        for task in _tasks(entry):
            part = replace(entry, task=task.metadata.name, cap=None)
            try:
                build_task(replace(part, splits=tuple(task.eval_splits), subsets=tuple(task.hf_subsets))).load_data()
            except ConnectionError as error:  # after all its retries; the others would cost them again
                left = ", ".join([*failed, *(e.name for e in todo[number:])])
                raise BoomError(f"the hub cannot be reached ({first_line(error)}). Still missing: {left}.") from None
            except Exception as error:  # whatever a dataset's host and its loader come up with
                failed[entry.name] = f"{type(error).__name__}: {first_line(error)}"
    if failed:
        shown = "".join(f"\n  {name}: {why}" for name, why in failed.items())
        raise BoomError(f"the data of {len(failed)} tasks could not be fetched:{shown}")


@contextmanager
def cached_configurations() -> Iterator[None]:
    """Offline, let mteb see which configurations of a dataset lie in the cache.

    It asks ``datasets`` for them, whose answer offline is ``default`` whatever there is; mteb would then leave a
    reranking task's candidates and a task's instructions out without a word.
    """
    if not offline():
        yield
        return
    from mteb.abstasks import retrieval_dataset_loaders as loaders

    with _PATCH:
        original = loaders.get_dataset_config_names
        loaders.get_dataset_config_names = lambda path, *_, **__: sorted(_configurations(path)) or original(path)
        try:
            yield
        finally:
            loaders.get_dataset_config_names = original


def _tasks(entry: EvalSet) -> list[Any]:
    import mteb

    task = mteb.get_task(entry.task, eval_splits=list(entry.splits), hf_subsets=list(entry.subsets))
    return list(task.metadata.tasks) if task.is_aggregate else [task]


def _lacking(task: Any) -> list[str]:
    """What a task's loader would have to download, as ``DATASET (CONFIGURATION)``.

    Loaders of a task's own are looked at less closely: their dataset must be in one of the two caches.
    """
    from mteb.abstasks.abstask import AbsTask
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    path = str(task.metadata.dataset["path"])
    if Path(path).is_dir():
        return []
    there, loader = _configurations(path), type(task).load_data
    if not there:
        own = loader not in (AbsTask.load_data, AbsTaskRetrieval.load_data)
        return [] if own and _in_hub_cache(path) else [path]
    subsets = task.hf_subsets if task.metadata.is_multilingual else ["default"]
    if loader is AbsTaskRetrieval.load_data:
        wanted = [choice for subset in subsets for choice in _retrieval_configurations(subset)]
    elif loader is AbsTask.load_data and task.metadata.is_multilingual and not task.fast_loading:
        wanted = [(subset,) for subset in subsets]
    else:
        wanted = []
    return [f"{path} ({choice[0]})" for choice in wanted if not there.intersection(choice)]


def _retrieval_configurations(subset: str) -> list[tuple[str, ...]]:
    """What mteb's retrieval loader reads; any name of a tuple will do."""
    if subset == "default":
        return [("corpus",), ("queries", "query"), ("default", "qrels")]
    return [(f"{subset}-corpus",), (f"{subset}-queries", "query"), (f"{subset}-qrels",)]


def _configurations(path: str) -> set[str]:
    """Configurations of a dataset of the hub that ``datasets`` has prepared in its cache."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *namespace, name = path.split("/")
    cache = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    folder = glob.escape(str(cache / "___".join([*namespace, camelcase_to_snakecase(name)])))
    files = glob.glob(f"{folder}/*/*/*/dataset_info.json")
    return {Path(file).parts[-4] for file in files}


def _in_hub_cache(path: str) -> bool:
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "snapshots"
    return any(snapshots.glob("*/*"))
