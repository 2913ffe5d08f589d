"""Which evaluation texts occur among training texts: decontamination read from its other side.

The rule is the corpus' own: whole texts after folding, and runs of words. Memory holds the hashes of the evaluation
texts, whatever the size of the training data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config.corpus import FilesSource
from boom_ray.data.decontaminate import Evaluation, write_evaluation
from boom_ray.data.schema import fold_digest
from boom_ray.data.shingles import WordHasher, ngrams
from boom_ray.data.sources import BadRow, dataset_stem, read_rows, resolve

NONE, NEAR, EXACT = 0, 1, 2
_BATCH = 2048
_NOT_TEXT = {"id", "role", "_id", "dataset", "task_type", "lang", "language", "label", "score", "source"}


class Overlap:
    """Evaluation texts that are looked for in training texts.

    Args:
        texts: every evaluation text.
        ngram: texts that share this many words in a row are near duplicates; None: only equal texts count.
        folder: an empty folder for the hashes.
    """

    def __init__(self, texts: Iterable[str], ngram: int | None, folder: Path) -> None:
        write_evaluation(texts, ngram, folder)
        self._known = Evaluation.of(folder)
        self._hasher = WordHasher()
        self._whole = np.full(len(self._known.texts), -1, np.int16)  # the training dataset that each was first seen in
        self._runs = np.full(len(self._known.ngrams), -1, np.int16)
        self._names: dict[str, int] = {}

    def look(self, dataset: str, training: Sequence[str]) -> None:
        """Look at some texts of a training dataset."""
        number = self._names.setdefault(dataset, len(self._names))
        if len(self._known.texts):
            digests = np.frombuffer(b"".join(fold_digest(text) for text in training), dtype="S16")
            _see(self._whole, self._known.texts, digests, number)
        if len(self._known.ngrams):
            _see(self._runs, self._known.ngrams, ngrams(self._hasher(training), self._known.length)[0], number)

    def found(self, texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """What was seen of evaluation texts: int8 [n] of NONE, NEAR or EXACT, and the training datasets it was in."""
        if not texts:
            return np.zeros(0, np.int8), []
        marks = np.zeros(len(texts), np.int8)
        sources: set[int] = set()
        if len(self._known.ngrams):
            hashes, owners = ngrams(self._hasher(texts), self._known.length)
            seen = self._runs[np.searchsorted(self._known.ngrams, hashes)]
            marks[owners[seen >= 0]] = NEAR
            sources.update(seen[seen >= 0].tolist())
        digests = np.frombuffer(b"".join(fold_digest(text) for text in texts), dtype="S16")
        whole = self._whole[np.searchsorted(self._known.texts, digests)]
        marks[whole >= 0] = EXACT
        sources.update(whole[whole >= 0].tolist())
        return marks, [name for name, number in self._names.items() if number in sources]


def corpus_texts(corpus: Path) -> Iterator[tuple[str, list[str]]]:
    """``(dataset, texts)`` of the rows of a corpus: what decontamination compares, a batch of rows at a time."""
    import pyarrow as pa

    for shard in sorted(corpus.glob("rows-*.arrow")):
        with pa.memory_map(str(shard)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                rows = reader.get_batch(number).select(["dataset", "task_type", "query", "pos", "neg"]).to_pylist()
                yield from _by_dataset((row["dataset"], row) for row in rows)


def file_texts(path: str) -> Iterator[tuple[str, list[str]]]:
    """``(dataset, texts)`` of a training file, a folder or a pattern, in any format that a corpus is read from.

    Rows of training examples give what decontamination compares; of any other row every text in it counts. Rows that
    cannot be read are passed over, as a corpus puts them aside.

    Raises:
        BoomError: nothing is there, or a file is of no known kind.
    """
    for file in resolve(FilesSource(path=path)):
        name, rows = dataset_stem(file), []
        for _, row in read_rows(file):
            if not isinstance(row, BadRow):
                given = row.get("dataset") if isinstance(row, Mapping) else None
                rows.append((given if isinstance(given, str) else name, row))
            if len(rows) == _BATCH:
                yield from _by_dataset(rows)
                rows.clear()
        yield from _by_dataset(rows)


def _by_dataset(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for dataset, row in rows:
        found.setdefault(dataset, []).extend(_texts(row))
    yield from ((dataset, texts) for dataset, texts in found.items() if texts)


def _texts(row: Any) -> Iterator[str]:
    """The texts of a row; what a classification row gives besides its query are names of classes."""
    if isinstance(row, str):
        if row and not row.isspace():
            yield row
    elif isinstance(row, Mapping):
        classes = row.get("task_type") == "classification" and isinstance(row.get("query"), str)
        for name, value in row.items():
            if name not in _NOT_TEXT and (name == "query" or not classes):
                yield from _texts(value)
    elif isinstance(row, Sequence):
        for value in row:
            yield from _texts(value)


def _see(seen: np.ndarray, known: np.ndarray, values: np.ndarray, number: int) -> None:
    """Write the dataset's number to every known hash that is among the values and was not seen before."""
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    places = np.unique(places[np.asarray(known[places] == values)])
    seen[places[seen[places] < 0]] = number
