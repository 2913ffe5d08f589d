"""Scores of a model on evaluation sets, computed by mteb and kept in its result cache.

Only what is missing is run: a result counts when it belongs to this model revision and to these texts. A result
file that cannot be read is made again. No text is encoded twice within one call, whatever the set.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.evaluate.downloads import require_data
from boom_ray.evaluate.results import cached, defined, keep, meta_for, model_meta, open_cache
from boom_ray.evaluate.sets import EvalSet, find_sets, precision_of
from boom_ray.evaluate.settings import Cap, asked
from boom_ray.evaluate.vectors import MtebEncoder, load_adapter

_VERSIONS = ("boom_ray", "mteb", "torch", "transformers", "tokenizers", "numpy", "scikit-learn", "datasets")


def evaluate(
    model: str | Path,
    sets: Sequence[EvalSet] | Sequence[str | Path],
    *,
    results: str | Path,
    cap: Cap = None,
    chunk_tokens: int = 16384,
    name: str | None = None,
    revision: str | None = None,
    trained: Collection[str] = (),
    prompts: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Score a model directory on evaluation sets.

    Args:
        model: a sentence-transformers or Hugging Face directory.
        sets: what :func:`boom_ray.evaluate.sets.find_sets` and :func:`boom_ray.evaluate.benchmarks.find_tasks`
            returned, or folders for the first.
        results: root of an mteb ``ResultCache``: ``results/MODEL/REVISION/SET.json`` below it.
        cap: texts per set at most, the same for all models, or ``{NAME: cap}``; default: whole sets (see ``asked``).
        chunk_tokens: padded tokens per forward pass at most; on a CPU never more than 2048, which is faster there.
        name: model name in the cache; default: the directory's name.
        revision: model revision in the cache; default: a digest of the directory's weights, tokenizer and settings.
        trained: names of the datasets the model was trained on, where known.
        prompts: put before the texts instead of the model's own, by task, task type or side (see ``asked``).

    Returns:
        Main score of every set, 0..1, in the order of the sets; rounded to 6 decimals as mteb's files are. A
        correlation that is undefined because all vectors are equal counts as 0.

    Raises:
        BoomError: the model or a set cannot be read, a dataset is not on this machine and may not be downloaded, or
            the model gives vectors that are not finite.
    """
    entries = asked(_entries(sets, trained), cap, prompts)
    directory = Path(model)
    if not directory.is_dir():
        raise BoomError(f"model {directory} is not a directory.")
    meta, cache = model_meta(directory, name, revision, trained), open_cache(results)
    found = {entry.name: cached(cache, meta, entry) for entry in entries}
    missing = [entry for entry in entries if found[entry.name] is None]
    if missing:
        require_data(missing)
        adapter = load_adapter(directory, meta, chunk_tokens, precision_of(missing))
        for entry in missing:
            run_set(adapter, entry, cache)
            found[entry.name] = cached(cache, meta, entry)
    scores = {name: score for name, score in found.items() if score is not None}
    if len(scores) < len(entries):
        raise BoomError(f"results were written to {results} but cannot be read back: is another process clearing it?")
    return {name: defined(score) for name, score in scores.items()}


def run_set(adapter: MtebEncoder, entry: EvalSet, cache: Any) -> None:
    """Score one set and keep the result, what it was made from and what it was taken with.

    Raises:
        BoomError: its dataset cannot be had.
    """
    import mteb

    from boom_ray.evaluate.tasks import build_task

    task = build_task(entry)
    adapter.mteb_model_meta = meta_for(adapter.mteb_model_meta, entry)
    adapter.asked_prompts = dict(entry.prompts)
    with quiet():
        found = mteb.evaluate(
            adapter,
            task,
            cache=None,
            encode_kwargs={"batch_size": 32, "show_progress_bar": False},
            show_progress_bar=False,
            co2_tracker=False,
        )
    if not found.task_results:
        raise BoomError(f"task '{entry.name}' could not be run: {found.exceptions[0].exception}")
    settings = _settings(adapter, entry, task.metadata)
    keep(cache, adapter.mteb_model_meta, entry, found.task_results[0], task.samples, settings)


def _settings(adapter: MtebEncoder, entry: EvalSet, metadata: Any) -> dict[str, Any]:
    """What a score depends on beside model and texts."""
    from mteb.types import PromptType

    sides = {"query": PromptType.query, "document": PromptType.document, "text": None}
    return {
        "prompts": {side: adapter._prompt(metadata, kind) for side, kind in sides.items()},
        "dtype": entry.precision,
        "batch_size": 32,  # of mteb's loader; a forward pass takes what fits chunk_tokens
        "chunk_tokens": adapter.chunk_tokens,
        "max_tokens": adapter.encoder.max_tokens,
        "device": next(adapter.encoder.backbone.parameters()).device.type,
        "versions": {package: version(package) for package in _VERSIONS},
    }


def _entries(sets: Sequence[EvalSet] | Sequence[str | Path], trained: Collection[str]) -> list[EvalSet]:
    ready = [entry for entry in sets if isinstance(entry, EvalSet)]
    folders = [entry for entry in sets if not isinstance(entry, EvalSet)]
    return ready + (find_sets(folders, trained or None) if folders else [])


@contextmanager
def quiet() -> Iterator[None]:
    """No bars of ``datasets`` (switched for the whole process only), no warnings about mteb's few-shot classifier."""
    import datasets
    from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
