"""Scores of a model on evaluation sets, computed by mteb and kept in its result cache.

Only what is missing is run: a result counts when it belongs to this model revision and to these texts. A result
file that cannot be read is made again. No text is encoded twice within one call, whatever the set.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.evaluate.results import cached, meta_for, model_meta, samples_file
from boom_ray.evaluate.sets import EvalSet, find_sets
from boom_ray.evaluate.settings import Cap, asked
from boom_ray.evaluate.significance import Samples
from boom_ray.evaluate.vectors import MtebEncoder, default_prompt


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
        sets: what :func:`boom_ray.evaluate.sets.find_sets` returned, or folders for it.
        results: root of an mteb ``ResultCache``: ``results/MODEL/REVISION/SET.json`` below it.
        cap: texts per set at most, the same for all models, or ``{NAME: cap}``; default: whole sets (see ``asked``).
        prompts: put before the texts instead of the model's own, by task, task type or side (see ``asked``).
        chunk_tokens: padded tokens per forward pass at most; on a CPU never more than 2048, which is faster there.
        name: model name in the cache; default: the directory's name.
        revision: model revision in the cache; default: a digest of the directory's weights, tokenizer and settings.
        trained: names of the datasets the model was trained on, where known.

    Returns:
        Main score of every set, 0..1, in the order of the sets; rounded to 6 decimals as mteb's files are. A
        correlation that is undefined because all vectors are equal counts as 0.

    Raises:
        BoomError: the model or a set cannot be read, or the model gives vectors that are not finite.
    """
    entries = asked(_entries(sets, trained), cap, prompts)
    directory = Path(model)
    if not directory.is_dir():
        raise BoomError(f"model {directory} is not a directory.")
    from mteb import ResultCache

    meta = model_meta(directory, name, revision, trained)
    cache = ResultCache(results)
    found = {entry.name: cached(cache, meta, entry) for entry in entries}
    missing = [entry for entry in entries if found[entry.name] is None]
    if missing:
        from boom_ray.encoder import Encoder

        adapter = MtebEncoder(Encoder.load(directory), meta, chunk_tokens, default_prompt(directory))
        for entry in missing:
            run_set(adapter, entry, cache)
            found[entry.name] = cached(cache, meta, entry)
    scores = {name: score for name, score in found.items() if score is not None}
    if len(scores) < len(entries):
        raise BoomError(f"results were written to {results} but cannot be read back: is another process clearing it?")
    return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}


def _entries(sets: Sequence[EvalSet] | Sequence[str | Path], trained: Collection[str]) -> list[EvalSet]:
    ready = [entry for entry in sets if isinstance(entry, EvalSet)]
    folders = [entry for entry in sets if not isinstance(entry, EvalSet)]
    return ready + (find_sets(folders, trained or None) if folders else [])


def run_set(adapter: MtebEncoder, entry: EvalSet, cache: Any) -> None:
    """Score one set and keep result and samples in an mteb ``ResultCache``."""
    import mteb

    from boom_ray.evaluate.tasks import build_task

    settings = {"batch_size": 32, "show_progress_bar": False, "chunk_tokens": adapter.chunk_tokens, "dtype": "float32"}
    task = build_task(entry)
    meta = adapter.mteb_model_meta = meta_for(adapter.mteb_model_meta, entry)
    adapter.asked_prompts = dict(entry.prompts)
    with _quiet():
        mteb.evaluate(
            adapter,
            task,
            cache=cache,
            overwrite_strategy="always",
            encode_kwargs=settings,
            show_progress_bar=False,
            co2_tracker=False,
        )
    samples = task.samples or Samples("none", entry.text_revision, np.zeros(0))
    samples.save(samples_file(cache, meta, entry))


@contextmanager
def _quiet() -> Iterator[None]:
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
