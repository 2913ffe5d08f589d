"""Kept results: an mteb ``ResultCache``, and beside it what each score was made from and with.

``results/MODEL/REVISION/TASK.json`` is mteb's file; ``samples/MODEL/REVISION/SET.npz`` holds the units behind the score
and ``SET.json`` what it was taken with. A result counts when all three can be read and belong to this model revision,
these prompts and these texts. Another prompt than the model's own is an experiment in mteb's layout.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from boom_ray.catalogue import mteb_tasks
from boom_ray.config import BoomError
from boom_ray.evaluate.sets import EvalSet
from boom_ray.evaluate.significance import Samples

_NOT_THE_MODEL = {"README.md", "manifest.json", "boom_manifest.json", "mergekit_config.yml", "_SUCCESS"}
_DAMAGED = (  # a kill leaves half a file, a bad disk anything
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, BadZipFile,
    RuntimeError, MemoryError, SyntaxError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """One kept score, as its ``SET.json`` tells it. ``settings`` are prompts, dtype, budget, device and versions."""

    name: str
    task: str
    task_type: str
    domain: str
    metric: str
    language: str
    benchmark: str
    texts: str
    score: float
    settings: Mapping[str, Any]


def open_cache(results: str | Path) -> Any:
    """An mteb ``ResultCache`` that several processes may write to.

    mteb reads, merges and rewrites the settings of a model's runs at each result; a lock makes them take turns.
    """
    from mteb import ResultCache

    class SharedCache(ResultCache):  # type: ignore[misc]
        def save_to_cache(self, *args: Any, **options: Any) -> None:
            Path(self.cache_path).mkdir(parents=True, exist_ok=True)
            with open(Path(self.cache_path) / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                super().save_to_cache(*args, **options)

    return SharedCache(results)


def load_samples(
    model: str | Path,
    sets: Sequence[EvalSet],
    *,
    results: str | Path,
    name: str | None = None,
    revision: str | None = None,
) -> dict[str, Samples]:
    """What each score of an evaluated model was made from, for the intervals of ``significance``.

    Sets whose main score is no function of single units are left out.

    Raises:
        BoomError: a set has not been evaluated for this model.
    """
    meta, cache = model_meta(Path(model), name, revision, ()), open_cache(results)
    found = {}
    for entry in sets:
        samples = read_kept(cache, meta, entry)
        if samples is None:
            what = f"'{entry.name}'" + (f" with a cap of {entry.cap} texts" if entry.cap else "")
            raise BoomError(f"model {meta.name} has no scores on {what} in {results}: evaluate it first.")
        if samples.known:
            found[entry.name] = samples
    return found


def read_kept(cache: Any, meta: Any, entry: EvalSet) -> Samples | None:
    """What the kept score of a set was made from; None: not there, of other texts, or damaged."""
    try:
        samples = Samples.load(samples_file(cache, meta, entry))
    except _DAMAGED:
        return None
    return samples if samples.texts == entry.text_revision else None


def kept_folder(results: str | Path, model: str, revision: str | None = None) -> Path | None:
    """Where samples and settings of a model's kept scores lie; no mteb is needed.

    Args:
        results: root of the results.
        model: the model's name in them, ``boom_ray/NAME`` or ``NAME``.
        revision: default: the one written last.
    """
    names = (model.replace("/", "__"), f"boom_ray__{model}")
    parents = [Path(results) / "samples" / name for name in names]
    found = [p for parent in parents if parent.is_dir() for p in parent.iterdir() if revision in (None, p.name)]
    return max((p for p in found if p.is_dir()), key=lambda p: p.stat().st_mtime, default=None)


def kept_scores(results: str | Path, model: str, revision: str | None = None) -> list[Kept]:
    """Every kept score of a model, by name; arguments as :func:`kept_folder`."""
    folder, found = kept_folder(results, model, revision), []
    for file in sorted(folder.glob("[!.]*.json")) if folder else ():
        try:
            found.append(Kept(**json.loads(file.read_text(encoding="utf-8"))))
        except _DAMAGED:
            continue
    return found


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
    """The main score kept for this model revision and these texts; None: not there, of other texts, or damaged.

    As on mteb's leaderboard the score of a task is the plain mean over its splits and subsets.
    """
    try:
        result = cache.load_task_result(entry.result_name, meta_for(meta, entry))
        file = samples_file(cache, meta, entry)
        told = Kept(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        texts = {result.dataset_revision, Samples.load(file).texts, told.texts}
        score = _mean_score(result, entry)
        whole = abs(score - told.score) < 1e-6 or (math.isnan(score) and math.isnan(told.score))  # mteb rounds to 1e-6
        return score if whole and texts == {entry.text_revision} else None
    except _DAMAGED:
        return None


def defined(score: float) -> float:
    """A correlation that is undefined because all vectors are equal counts as 0."""
    return 0.0 if math.isnan(score) else score


def keep(cache: Any, meta: Any, entry: EvalSet, result: Any, samples: Samples, settings: Mapping[str, Any]) -> None:
    """Write mteb's result of a set, what it was made from, and with.

    Splits and subsets that the task's result file has already, of the same texts, stay there.
    """
    meta = meta_for(meta, entry)
    try:
        before = cache.load_task_result(entry.result_name, meta)
        merged = before.merge(result) if before.is_mergeable(result) else result
    except _DAMAGED:
        merged = result
    cache.save_to_cache(merged, meta, encode_kwargs=settings)
    file = samples_file(cache, meta, entry)
    samples.save(file)
    told = Kept(
        entry.name, entry.task, entry.task_type, entry.domain, entry.metric, entry.language, entry.benchmark,
        entry.text_revision, _mean_score(result, entry), settings,
    )  # fmt: skip
    half = file.with_name(f".{file.stem}.json")
    half.write_text(json.dumps(told.__dict__, indent=1, ensure_ascii=False), encoding="utf-8")
    half.replace(file.with_suffix(".json"))


def samples_file(cache: Any, meta: Any, entry: EvalSet) -> Path:
    """Where a set's samples lie: as its result file does, below ``samples`` instead of mteb's ``results``."""
    root = Path(cache.cache_path)
    folder = cache.get_task_result_path(entry.result_name, meta_for(meta, entry)).parent.relative_to(root / "results")
    return root / "samples" / folder / f"{entry.name.replace('/', '-')}.npz"


def meta_for(meta: Any, entry: EvalSet) -> Any:
    """The model as it scores this set: other prompts than its own, and bfloat16, are an experiment in mteb's layout."""
    changed = {"prompts": hashlib.sha256(json.dumps(entry.prompts).encode()).hexdigest()[:12]} if entry.prompts else {}
    changed |= {"precision": entry.precision} if entry.precision != "float32" else {}
    return meta.model_copy(update={"experiment_kwargs": changed or None})


def model_meta(directory: Path, name: str | None, revision: str | None, trained: Collection[str]) -> Any:
    """mteb's description of a model directory, its training datasets among it, by mteb's names where it knows them."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    name = re.sub(r"[^A-Za-z0-9._/-]+", "-", name or directory.resolve().name)
    known = {
        "name": name if "/" in name else f"boom_ray/{name}",
        "revision": revision or model_revision(directory),
        "framework": ["Sentence Transformers"],
        "similarity_fn_name": ScoringFunction.COSINE,
        "training_datasets": set(trained) | mteb_tasks(trained) or None,
        "open_weights": True,
    }
    return ModelMeta.create_empty(known)


def _mean_score(result: Any, entry: EvalSet) -> float:
    scores = []
    for split in entry.splits:
        by_subset = {row["hf_subset"]: row for row in result.scores[split]}
        scores += [float(by_subset[subset]["main_score"]) for subset in entry.subsets]
    return math.fsum(scores) / len(scores)
