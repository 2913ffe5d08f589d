"""Digests of what a recipe points at: sources, base, evaluation tasks, models that mine. Starts nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError, Recipe
from boom_ray.config.corpus import FilesSource, Source
from boom_ray.ledger import file_sha256, identity


def digests_of_sources(datasets: Sequence[Source]) -> tuple[Any, ...]:
    """What the sources of a corpus hold, one entry each.

    Raises:
        BoomError: a source is not there.
    """
    from boom_ray.data import python_environment, sources

    seen: list[Any] = []
    for source in datasets:
        if isinstance(source, FilesSource):
            files = sources.file_digests(source)
            seen.append([[f["name"], f["digest"]] for f in files])
        else:
            seen.append(python_environment.fingerprint(source))
    return tuple(seen)


def mteb_digests(recipe: Recipe) -> tuple[Any, ...]:
    """Which texts the recipe's benchmarks and tasks of mteb hold; where there are none, mteb is not imported."""
    if not (recipe.evaluate.benchmarks or recipe.evaluate.tasks):
        return ()
    from boom_ray.evaluate.benchmarks import find_tasks

    found = find_tasks(recipe.evaluate.benchmarks, recipe.evaluate.tasks)
    return tuple([entry.name, entry.digest, entry.parts] for entry in found)


def corpus_datasets(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """The corpus' datasets, where the number of members follows from them."""
    if recipe.bags.kind not in ("dataset", "task_type"):
        return ()
    from boom_ray.data.dataset_names import datasets_of

    return datasets_of(recipe.corpus)


def base_digest(recipe: Recipe) -> str | None:
    model = recipe.base.model
    return None if model is None else _model_digest("base.model", model, recipe.base.revision)


def miner_digests(recipe: Recipe) -> tuple[str, ...]:
    models = recipe.corpus.mine.models if recipe.corpus.mine else ()
    return tuple(identity(_model_digest("corpus.mine.models", model, None)) for model in models)


def _model_digest(key: str, model: str, revision: str | None) -> str:
    """What a model holds; a hub name is known by its revision."""
    if not Path(model).is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise BoomError(f"{key} {model!r} is not a directory. Give one, or the name of a Hugging Face model.")
        return f"{model}@{revision}"
    files = sorted(p for p in Path(model).rglob("*") if p.suffix in (".safetensors", ".json", ".txt", ".model"))
    return json.dumps([[p.relative_to(model).as_posix(), file_sha256(p)] for p in files])
