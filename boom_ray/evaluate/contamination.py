"""Decontamination's other side: how much of a set's test texts occurs in a model's training texts.

Who knows the training texts answers ``found``; this room knows which texts a set scores, and what its score is without
the queries and rows that are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boom_ray.evaluate.contents import Rows, Search, contents
from boom_ray.evaluate.marks import Mark
from boom_ray.evaluate.sets import EvalSet
from boom_ray.evaluate.significance import Samples

_BLOCK = 4096
_NEAR, _EXACT = 1, 2
Found = Callable[[Sequence[str]], tuple[np.ndarray, Sequence[str]]]
"""Texts to int8 [n], 0 not in the training texts, 1 a run of words is, 2 the whole text is; and in which datasets."""


def evaluation_texts(sets: Sequence[EvalSet]) -> Iterator[str]:
    """Every text that the sets score a model on, documents with and without their titles."""
    for entry in sets:
        for part in contents(entry):
            if isinstance(part, Rows):
                yield from part.texts()
            else:
                yield from part.queries.values()
                for _, texts, bodies in part.blocks(_BLOCK):
                    yield from texts
                    yield from (body for text, body in zip(texts, bodies, strict=True) if body != text)


def mark(entry: EvalSet, found: Found, samples: Mapping[str, Samples] | None = None) -> Mark:
    """Count what of a set occurs in training texts.

    Args:
        samples: by model, what its score on this set was made from.
    """
    counts, touched, datasets = np.zeros(3, np.int64), [], dict[str, None]()
    for part in contents(entry):
        seen = _Seen(found, counts, datasets)
        touched.append(_touched_queries(part, seen) if isinstance(part, Search) else _touched_rows(part, seen))
    clean = {model: clean_score(s, touched) for model, s in (samples or {}).items() if s.texts == entry.text_revision}
    return Mark(
        revision=entry.text_revision,
        texts=int(counts.sum()),
        exact=int(counts[_EXACT]),
        near=int(counts[_NEAR]),
        units=sum(len(units) for units in touched),
        touched=int(sum(units.sum() for units in touched)),
        datasets=tuple(datasets),
        clean={model: score for model, score in clean.items() if score is not None},
    )


def clean_score(samples: Samples, touched: Sequence[np.ndarray]) -> float | None:
    """The score without the touched units, bool [N] for each part; None where units are not known or none is left."""
    leaves = list(samples.leaves())
    if not samples.known or len(leaves) != len(touched):
        return None
    score = 0.0
    for (weight, leaf), units in zip(leaves, touched, strict=True):
        if leaf.units != len(units) or units.all():
            return None
        score += weight * float(leaf.resampled((~units)[None].astype(float))[0])
    return score


@dataclass(frozen=True)
class _Seen:
    """Asks, and counts what it is told."""

    found: Found
    counts: np.ndarray
    datasets: dict[str, None]

    def __call__(self, *readings: Sequence[str]) -> np.ndarray:
        """Whether each of N texts occurs, bool [N], in any of its readings."""
        told = [self.found(texts) for texts in readings]
        codes = np.max([codes for codes, _ in told], axis=0)
        np.add(self.counts, np.bincount(codes, minlength=3), out=self.counts)
        self.datasets.update(dict.fromkeys(name for _, datasets in told for name in datasets))
        return np.asarray(codes > 0)


def _touched_rows(part: Rows, seen: _Seen) -> np.ndarray:
    texts = part.texts()
    hits = {text for text, hit in zip(texts, seen(texts).tolist(), strict=True) if hit}
    return np.array([any(text in hits for text in row) for row in part.rows], dtype=bool)


def _touched_queries(part: Search, seen: _Seen) -> np.ndarray:
    queries = seen(list(part.queries.values()))
    documents: set[str] = set()
    for ids, texts, bodies in part.blocks(_BLOCK):
        hits = seen(texts, bodies)  # with and without the title: one document
        documents.update(key for key, hit in zip(ids, hits.tolist(), strict=True) if hit)
    answers = [any(s > 0 and key in documents for key, s in found.items()) for found in part.relevant.values()]
    return queries | np.array(answers, dtype=bool)
