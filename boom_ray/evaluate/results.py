"""Kept results: an mteb ``ResultCache``, and beside it what each score was made from.

A result counts when it belongs to this model revision and to these texts; what cannot be read does not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from boom_ray.config import BoomError
from boom_ray.evaluate.sets import EvalSet
from boom_ray.evaluate.significance import Samples

_NOT_THE_MODEL = {"README.md", "manifest.json", "boom_manifest.json", "mergekit_config.yml", "_SUCCESS"}


def load_samples(
    model: str | Path,
    sets: Sequence[EvalSet],
    *,
    results: str | Path,
    name: str | None = None,
    revision: str | None = None,
) -> dict[str, Samples]:
    """What each score of an evaluated model was made from, for the intervals of ``significance``.

    Sets whose main score is no function of single units (F1, MRR, AMI) are left out.

    Raises:
        BoomError: a set has not been evaluated for this model.
    """
    from mteb import ResultCache

    meta, cache = model_meta(Path(model), name, revision, ()), ResultCache(results)
    found = {}
    for entry in sets:
        try:
            found[entry.name] = Samples.load(samples_file(cache, meta, entry))
        except (OSError, ValueError, KeyError, BadZipFile):
            raise BoomError(
                f"model {meta.name} has no scores on '{entry.name}' in {results}: evaluate it first."
            ) from None
    return {key: samples for key, samples in found.items() if samples.kind != "none"}


def model_revision(directory: Path) -> str:
    """16 hexadecimal digits over everything in a model directory that can change a vector."""
    digest = hashlib.sha256()
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        relative = file.relative_to(directory)
        if file.name in _NOT_THE_MODEL or any(part.startswith(".") for part in relative.parts):
            continue
        with open(file, "rb") as stream:
            digest.update(relative.as_posix().encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def cached(cache: Any, meta: Any, entry: EvalSet) -> float | None:
    """The main score kept for this model revision and these texts; None: not there, of other texts, or damaged."""
    try:
        result = cache.load_task_result(entry.result_name, meta_for(meta, entry))
        texts = Samples.load(samples_file(cache, meta, entry)).texts
        if result is None or not result.dataset_revision == texts == entry.text_revision:
            return None
        return float(result.scores["test"][0][entry.metric])
    except (OSError, ValueError, KeyError, IndexError, TypeError, BadZipFile):  # a kill leaves half a file
        return None


def samples_file(cache: Any, meta: Any, entry: EvalSet) -> Path:
    """Where a set's samples lie: as its result file does, below ``samples`` instead of mteb's ``results``."""
    result: Path = cache.get_task_result_path(entry.result_name, meta_for(meta, entry))
    return (
        Path(cache.cache_path) / "samples" / result.relative_to(Path(cache.cache_path) / "results").with_suffix(".npz")
    )


def meta_for(meta: Any, entry: EvalSet) -> Any:
    """The model as it scores this set: other prompts than its own are an experiment in mteb's layout."""
    digest = hashlib.sha256(json.dumps(entry.prompts).encode()).hexdigest()[:12]
    return meta.model_copy(update={"experiment_kwargs": {"prompts": digest} if entry.prompts else None})


def model_meta(directory: Path, name: str | None, revision: str | None, trained: Collection[str]) -> Any:
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    name = re.sub(r"[^A-Za-z0-9._/-]+", "-", name or directory.resolve().name)
    known = {
        "name": name if "/" in name else f"boom_ray/{name}",
        "revision": revision or model_revision(directory),
        "framework": ["Sentence Transformers"],
        "similarity_fn_name": ScoringFunction.COSINE,
        "training_datasets": set(trained) or None,
        "open_weights": True,
    }
    return ModelMeta.create_empty(known)
