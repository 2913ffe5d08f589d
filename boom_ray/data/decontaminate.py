"""Evaluation texts are taken out of the training rows: whole texts after folding, and n-grams of words on request.

What is compared with lies in two sorted files that all workers of a node map into memory, so that they share one copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boom_ray.data.schema import Example, fold_digest
from boom_ray.data.shingles import WordHasher, ngrams

_TEXTS, _NGRAMS, _LENGTH = "evaluation.bin", "ngrams.bin", "ngram.txt"
_GROUP = 4096  # texts that are split into words at once


@dataclass(frozen=True)
class Evaluation:
    """What no training row may hold.

    Attributes:
        texts: S16 [n], sorted digests of the folded texts.
        ngrams: uint64 [m], sorted hashes of their runs of ``length`` words; empty where n-grams are not compared.
    """

    texts: np.ndarray
    ngrams: np.ndarray
    length: int

    @classmethod
    def of(cls, folder: Path) -> Evaluation:
        """What :func:`write_evaluation` wrote."""
        length = int((folder / _LENGTH).read_text())
        return cls(_mapped(folder / _TEXTS, "S16"), _mapped(folder / _NGRAMS, "<u8"), length)


def write_evaluation(texts: Iterable[str], ngram: int | None, folder: Path) -> None:
    """Write the sorted digests of evaluation texts, and of their n-grams; each file replaced by one rename."""
    digests: set[bytes] = set()
    runs, hasher = [np.empty(0, np.uint64)], WordHasher()
    group: list[str] = []
    for text in texts:
        digests.add(fold_digest(text))
        if ngram:
            group.append(text)
        if ngram and len(group) == _GROUP:
            runs.append(np.unique(ngrams(hasher(group), ngram)[0]))
            group.clear()
    if ngram and group:
        runs.append(np.unique(ngrams(hasher(group), ngram)[0]))
    _replace(folder / _TEXTS, b"".join(sorted(digests)))
    _replace(folder / _NGRAMS, np.unique(np.concatenate(runs)).astype("<u8").tobytes())
    _replace(folder / _LENGTH, str(ngram or 0).encode())


def decontaminate(
    examples: Sequence[Example], evaluation: Evaluation, hasher: WordHasher, counts: Mapping[str, dict[str, int]]
) -> list[Example]:
    """The examples without those whose query or a positive is an evaluation text, and without negatives that are one.

    Positives and negatives of a classification row are names of classes, no texts: they are left alone.
    """
    if not len(evaluation.texts):
        return list(examples)
    texts: list[str] = []
    for e in examples:
        texts.append(e.query)
        if e.task_type != "classification":
            texts += e.pos
            texts += e.neg
    found = _found(texts, evaluation, hasher)
    if not found.any():
        return list(examples)
    return _without(examples, found.tolist(), counts)


def _without(examples: Sequence[Example], found: list[bool], counts: Mapping[str, dict[str, int]]) -> list[Example]:
    kept, place = [], 0
    for example in examples:
        compared = example.task_type != "classification"
        first_negative = place + 1 + (len(example.pos) if compared else 0)
        end = first_negative + (len(example.neg) if compared else 0)
        if any(found[place:first_negative]):
            counts[example.dataset]["decontaminated"] += 1
        elif any(found[first_negative:end]):
            neg = tuple(n for n, bad in zip(example.neg, found[first_negative:end], strict=True) if not bad)
            counts[example.dataset]["negatives_decontaminated"] += len(example.neg) - len(neg)
            kept.append(example._replace(neg=neg))
        else:
            kept.append(example)
        place = end
    return kept


def _found(texts: Sequence[str], evaluation: Evaluation, hasher: WordHasher) -> np.ndarray:
    """Boolean [n]: which texts are, or share an n-gram with, an evaluation text."""
    digests = np.frombuffer(b"".join([fold_digest(text) for text in texts]), dtype="S16")
    found = _in_sorted(digests, evaluation.texts)
    if len(evaluation.ngrams):
        hashes, owners = ngrams(hasher(texts), evaluation.length)
        found[owners[_in_sorted(hashes, evaluation.ngrams)]] = True
    return found


def _replace(file: Path, content: bytes) -> None:
    """Workers of a killed run may still have the old file mapped."""
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def _in_sorted(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[places] == values)


def _mapped(file: Path, dtype: str) -> np.ndarray:
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.empty(0, dtype)
