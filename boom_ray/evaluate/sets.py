"""Evaluation sets on disk: found, checked, told apart into in-domain and out-of-domain.

A set is a folder with a ``meta.json`` (see docs/evaluation.md). Whether it is in-domain follows from the datasets
that were trained on; a folder that says otherwise is an error, so that no table can claim what is not so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from boom_ray.config import BoomError
from boom_ray.config.corpus import TASK_TYPES
from boom_ray.evaluate.rows import data_file, read_labelled, read_pairs, read_retrieval

Domain = Literal["in_domain", "out_of_domain"]
META = "meta.json"
_DEPTH = 3  # a folder of domains of sets
_FILES: dict[str, tuple[str, ...]] = {
    "retrieval": ("corpus", "queries"),
    "reranking": ("corpus", "queries", "top_ranked"),
    "classification": ("train", "test"),
    "clustering": ("test",),
    "sts": ("test",),
}
_RANKING = r"(ndcg|map|recall|precision|mrr|hit_rate)_at_(1|3|5|10|20|100|1000)"
_CLASSES = r"accuracy|f1(_weighted)?|precision(_weighted)?|recall(_weighted)?|ap(_weighted)?"
_METRICS: dict[str, tuple[str, str]] = {  # default, and a pattern of mteb's names
    "retrieval": ("ndcg_at_10", _RANKING),
    "reranking": ("map_at_1000", _RANKING),
    "classification": ("accuracy", _CLASSES),
    "clustering": ("v_measure", r"v_measure|ami"),
    "sts": ("cosine_spearman", r"((cosine|manhattan|euclidean)_)?(pearson|spearman)"),
}
_ALIASES = {"map": "map_at_1000", "mrr": "mrr_at_1000", "ndcg": "ndcg_at_1000"}


@dataclass(frozen=True)
class EvalSet:
    """One evaluation set: a folder, or a task of mteb's registry.

    ``name`` is unique among the sets scored together. ``task_type`` is ours, or mteb's in snake case
    (``pair_classification``). ``metric`` is mteb's name of the main score. ``digest`` names the set's content: a sha256
    over its files, or mteb's revision of the dataset. ``path`` is None for a task of the registry, which has in
    ``task`` mteb's name of it, and ``benchmark`` the benchmark that asked for it with these ``splits`` and ``subsets``.
    ``cap``, ``prompts`` and ``precision`` are what a user asked for on top: see
    :func:`boom_ray.evaluate.settings.asked`.
    """

    name: str
    path: Path | None
    task_type: str
    domain: Domain
    metric: str
    language: str
    digest: str
    benchmark: str = ""
    task: str = ""
    splits: tuple[str, ...] = ("test",)
    subsets: tuple[str, ...] = ("default",)
    cap: int | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    precision: str = "float32"

    @property
    def folder(self) -> Path:
        """Where a local set lies. Raises ValueError for a task of the registry."""
        if self.path is None:
            raise ValueError(f"'{self.name}' is a task of mteb's registry, not a folder")
        return self.path

    @property
    def result_name(self) -> str:
        """mteb's name of the task, which its result file has."""
        return self.task or self.name

    @property
    def text_revision(self) -> str:
        """Names the texts that a score was taken on: the set's content and the cap; mteb's ``dataset_revision``."""
        content = self.digest if self.task else self.digest[:16]
        return content if self.cap is None else f"{content}-cap{self.cap}"

    @property
    def parts(self) -> list[str]:
        """``SPLIT/SUBSET`` of everything that is scored, in the order that mteb takes; the score is their mean."""
        return [f"{split}/{subset}" for split in self.splits for subset in self.subsets]


def precision_of(sets: Sequence[EvalSet]) -> str:
    """What a model computes in for these sets: all of one call are asked for alike."""
    return sets[0].precision if sets else "float32"


def find_sets(folders: Sequence[str | Path], trained: Collection[str] | None, *, strict: bool = True) -> list[EvalSet]:
    """All evaluation sets in ``folders``, in the order of the folders, then by name.

    Args:
        folders: sets, folders of sets, or folders with ``in_domain`` and ``out_of_domain`` in them.
        trained: names of the datasets trained on; None when they are not known, so that the folder's name decides.
        strict: a folder whose name says something else than the training datasets is an error; else they decide.

    Raises:
        BoomError: a folder or file is missing, a meta.json is wrong, two sets share a name, or a set lies in a folder
            called in_domain/ or out_of_domain/ although the training datasets say the opposite.
    """
    found: dict[Path, EvalSet] = {}
    for folder in (Path(f) for f in folders):
        if not folder.is_dir():
            raise BoomError(f"evaluation folder {folder} does not exist or is not a folder.")
        paths = list(_walk(folder, _DEPTH))
        if not paths:
            raise BoomError(f"{folder} holds no evaluation set: no folder in it has a {META} (see docs/evaluation.md).")
        for path in paths:
            if path.resolve() not in found:
                found[path.resolve()] = _load(path, folder, trained, strict)
    by_name: dict[str, EvalSet] = {}
    for entry in found.values():
        if (other := by_name.setdefault(entry.name, entry)) is not entry:
            raise BoomError(
                f"two evaluation sets are called '{entry.name}': {other.path} and {entry.path}. Rename one."
            )
    return list(by_name.values())


def texts(sets: Sequence[EvalSet]) -> Iterator[str]:
    """Every text that the sets score a model on: queries, documents (with and without title), sentences, test texts.

    Labels and the few training texts of classification sets are not among them.

    Raises:
        BoomError: a bad row, as ``file:line: reason``.
    """
    for entry in sets:
        if entry.task_type in ("retrieval", "reranking"):
            data = read_retrieval(entry.folder, reranking=entry.task_type == "reranking")
            yield from data.queries.values()
            for document in data.documents.values():
                yield document.joined
                if document.title and document.text.strip():
                    yield document.text
        elif entry.task_type == "sts":
            pairs = read_pairs(entry.folder)
            yield from pairs.first
            yield from pairs.second
        else:
            yield from read_labelled(entry.folder, "test").texts


def read_meta(path: Path) -> dict[str, Any]:
    """The checked meta.json of a set.

    Raises:
        BoomError: bad JSON, or a field that is missing or wrong.
    """
    file = path / META
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BoomError(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(meta, dict):
        raise BoomError(f"{file} must be a JSON object.")
    name, task_type = meta.get("name"), meta.get("task_type")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise BoomError(f"{file}: 'name' must be letters, digits, '.', '_' and '-', got {name!r}.")
    if task_type not in TASK_TYPES:
        raise BoomError(f"{file}: unknown task_type {task_type!r}; known are {', '.join(TASK_TYPES)}.")
    default, pattern = _METRICS[task_type]
    given = meta.get("main_metric", default)
    metric = _ALIASES.get(given, given) if isinstance(given, str) else given
    if not isinstance(metric, str) or not re.fullmatch(pattern, metric):
        raise BoomError(f"{file}: main_metric {given!r} is not one of {task_type}; usual is '{default}'.")
    trained_by = meta.get("trained_by", [])
    trained_by = [trained_by] if isinstance(trained_by, str) else trained_by
    if not isinstance(trained_by, list) or not all(isinstance(t, str) for t in trained_by):
        raise BoomError(f"{file}: 'trained_by' must be a list of dataset names, got {trained_by!r}.")
    samples = meta.get("samples_per_label")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise BoomError(f"{file}: 'samples_per_label' must be a whole number from 1 up, got {samples!r}.")
    return {**meta, "main_metric": metric, "trained_by": trained_by, "lang": str(meta.get("lang", "und"))}


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / META).is_file():
        yield folder
        return
    if any(data_file(folder, stem) for stem in ("corpus", "queries", "test")):
        raise BoomError(f"{folder} looks like an evaluation set, but has no {META} (see docs/evaluation.md).")
    if depth:
        for child in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield from _walk(child, depth - 1)


def _load(path: Path, given: Path, trained: Collection[str] | None, strict: bool) -> EvalSet:
    meta = read_meta(path)
    files = [data_file(path, stem) or path / f"{stem}.jsonl.gz" for stem in _FILES[meta["task_type"]]]
    if meta["task_type"] in ("retrieval", "reranking"):
        files.append(path / "qrels.tsv")
    if missing := next((file for file in files if not file.is_file()), None):
        raise BoomError(f"{missing} does not exist; a {meta['task_type']} set needs it (see docs/evaluation.md).")
    return EvalSet(
        name=meta["name"],
        path=path,
        task_type=meta["task_type"],
        domain=_domain(path, given, meta, trained, strict),
        metric=meta["main_metric"],
        language=meta["lang"],
        digest=_digest([path / META, *files]),
    )


def _domain(path: Path, given: Path, meta: dict[str, Any], trained: Collection[str] | None, strict: bool) -> Domain:
    above = [path.resolve().parent]
    above += [p for p in above[0].parents if p.is_relative_to(given.resolve())]
    folder: Domain | None = next((d for p in above for d in get_args(Domain) if p.name == d), None)
    if trained is None:
        return folder or "out_of_domain"
    names = [meta["name"], *meta["trained_by"]]
    hits = [name for name in names if name in trained]
    derived: Domain = "in_domain" if hits else "out_of_domain"
    if strict and folder is not None and folder != derived:
        reason = f"'{hits[0]}' is a trained dataset" if hits else f"none of {names} is a trained dataset"
        raise BoomError(
            f"evaluation set '{meta['name']}' lies in a folder called {folder}/ ({path}), but is {derived}: {reason}. "
            f"Move the set, correct 'trained_by' in its {META}, or change the training datasets."
        )
    return derived


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        with open(file, "rb") as stream:
            digest.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
