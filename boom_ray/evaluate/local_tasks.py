"""Local evaluation sets as mteb tasks: subclasses of mteb's own task classes, so that every score is mteb's.

Whole sets by default: mteb's clustering would embed 4 % of the texts. Classification keeps mteb's protocol: logistic
regression on 8 texts per label (or ``samples_per_label`` of meta.json), ten draws. A cap is part of the data
revision, so that capped and whole scores are never taken for one another.
"""

from __future__ import annotations

import re
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from boom_ray.evaluate.keeping import (
    Keeping,
    KeepsClassification,
    KeepsClustering,
    KeepsRetrieval,
    KeepsSTS,
)
from boom_ray.evaluate.rows import Labelled, cap_retrieval, cap_rows, read_labelled, read_pairs, read_retrieval
from boom_ray.evaluate.sets import EvalSet, read_meta

_TYPES = {
    "retrieval": ("Retrieval", "t2t"),
    "reranking": ("Reranking", "t2t"),
    "classification": ("Classification", "t2c"),
    "clustering": ("Clustering", "t2c"),
    "sts": ("STS", "t2t"),
}
_LANGUAGES = {
    "ar": "ara-Arab", "bn": "ben-Beng", "cs": "ces-Latn", "da": "dan-Latn", "de": "deu-Latn", "el": "ell-Grek",
    "en": "eng-Latn", "es": "spa-Latn", "fa": "fas-Arab", "fi": "fin-Latn", "fr": "fra-Latn", "he": "heb-Hebr",
    "hi": "hin-Deva", "hu": "hun-Latn", "id": "ind-Latn", "it": "ita-Latn", "ja": "jpn-Jpan", "ko": "kor-Hang",
    "nl": "nld-Latn", "no": "nob-Latn", "pl": "pol-Latn", "pt": "por-Latn", "ro": "ron-Latn", "ru": "rus-Cyrl",
    "sv": "swe-Latn", "th": "tha-Thai", "tr": "tur-Latn", "uk": "ukr-Cyrl", "vi": "vie-Latn", "zh": "zho-Hans",
    "zh-Hant": "zho-Hant",
    "code:bash": "shell-Code", "code:java": "java-Code", "code:javascript": "javascript-Code", "code:go": "go-Code",
    "code:php": "php-Code", "code:python": "python-Code", "code:ruby": "ruby-Code", "code:rust": "rust-Code",
    "code:sql": "sql-Code",
}  # fmt: skip


def local_task(entry: EvalSet) -> AbsTask:
    """A fresh mteb task over a local set."""
    return _CLASSES[entry.task_type](entry)


class _Local(Keeping):
    """What the local tasks share: metadata from the set, data from its folder."""

    dataset: Any

    def __init__(self, entry: EvalSet) -> None:
        self.entry = entry
        self.kept = {}
        self.metadata = _metadata(entry)
        super().__init__()

    def unload_data(self) -> None:
        """As mteb's, but the metadata stay: here they belong to the instance, not to the class."""
        self.dataset = None
        self.data_loaded = False


class LocalRetrieval(_Local, KeepsRetrieval, AbsTaskRetrieval):
    """Retrieval, and reranking as retrieval among given candidates."""

    def load_data(self, **_: Any) -> None:
        data = read_retrieval(self.entry.folder, reranking=self.entry.task_type == "reranking")
        if self.entry.cap is not None:
            data = cap_retrieval(data, self.entry.cap)
        split = RetrievalSplitData(
            queries=Dataset.from_dict({"id": list(data.queries), "text": list(data.queries.values())}),
            corpus=Dataset.from_dict(
                {
                    "id": list(data.documents),
                    "title": [document.title for document in data.documents.values()],
                    "text": [document.text for document in data.documents.values()],
                }
            ),
            relevant_docs={query: dict(found) for query, found in data.relevant.items()},
            top_ranked=None if data.candidates is None else {q: list(found) for q, found in data.candidates.items()},
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class LocalClassification(_Local, KeepsClassification, AbsTaskClassification):
    """Logistic regression on a few training texts per label. A cap cuts the test texts only."""

    def __init__(self, entry: EvalSet) -> None:
        super().__init__(entry)
        self.samples_per_label: int = read_meta(entry.folder).get("samples_per_label") or self.samples_per_label

    def load_data(self, **_: Any) -> None:
        train = read_labelled(self.entry.folder, "train")
        test = _capped(read_labelled(self.entry.folder, "test"), self.entry.cap)
        numbers = {label: number for number, label in enumerate(sorted({*train.labels, *test.labels}))}
        self.dataset = DatasetDict(
            {
                split: Dataset.from_dict({"text": list(rows.texts), "label": [numbers[x] for x in rows.labels]})
                for split, rows in (("train", train), ("test", test))
            }
        )
        self.data_loaded = True


class LocalClustering(_Local, KeepsClustering, AbsTaskClustering):
    """k-means on all texts, ten draws."""

    max_fraction_of_documents_to_embed = None

    def load_data(self, **_: Any) -> None:
        rows = _capped(read_labelled(self.entry.folder, "test"), self.entry.cap)
        self.dataset = DatasetDict(
            {"test": Dataset.from_dict({"sentences": list(rows.texts), "labels": list(rows.labels)})}
        )
        self.data_loaded = True


class LocalSTS(_Local, KeepsSTS, AbsTaskSTS):
    """Correlation of cosine and score. A cap counts both texts of a pair."""

    min_score = 0
    max_score = 1  # a linear scale changes no correlation

    def load_data(self, **_: Any) -> None:
        pairs = read_pairs(self.entry.folder)
        rows = list(range(len(pairs.scores)))
        if self.entry.cap is not None:
            rows = cap_rows((f"{a}\0{b}" for a, b in zip(pairs.first, pairs.second, strict=True)), self.entry.cap // 2)
        columns = {"sentence1": pairs.first, "sentence2": pairs.second, "score": pairs.scores}
        self.dataset = DatasetDict(
            {"test": Dataset.from_dict({name: [values[row] for row in rows] for name, values in columns.items()})}
        )
        self.data_loaded = True


_CLASSES = {
    "retrieval": LocalRetrieval,
    "reranking": LocalRetrieval,
    "classification": LocalClassification,
    "clustering": LocalClustering,
    "sts": LocalSTS,
}


def _capped(rows: Labelled, cap: int | None) -> Labelled:
    if cap is None:
        return rows
    kept = cap_rows(rows.texts, cap)
    return Labelled(tuple(rows.texts[i] for i in kept), tuple(rows.labels[i] for i in kept))


def _metadata(entry: EvalSet) -> TaskMetadata:
    kind, category = _TYPES[entry.task_type]
    return TaskMetadata(
        name=entry.name,
        description=f"Local {entry.task_type} set '{entry.name}'.",
        dataset={"path": f"local/{entry.name}", "revision": entry.text_revision},
        type=kind,
        category=category,
        eval_splits=["test"],
        eval_langs=_languages(entry.language),
        main_score=entry.metric,
    )


def _languages(language: str) -> list[str]:
    """mteb's codes of a meta.json language: "en", "code:python", "ar,de->en"; what is not known is undetermined."""
    codes = {_LANGUAGES[part] for part in re.split(r",|->", language) if part in _LANGUAGES}
    return sorted(codes) or ["und-Zyyy"]
