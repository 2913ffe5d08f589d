"""Training rows made for benchmarks: texts of invented words with the frequencies of a language (Zipf's law)."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ol", "us")]
_WORDS = 40_000
_CHUNK = 10_000  # rows made from one random stream


@dataclass(frozen=True)
class Lengths:
    """Fewest and most words of a query, a positive and a negative; ``negatives`` is their share of rows."""

    query: tuple[int, int] = (4, 13)
    pos: tuple[int, int] = (8, 81)
    neg: tuple[int, int] = (8, 81)
    negatives: float = 0.5


SHORT = Lengths(query=(2, 7), pos=(3, 10), negatives=0.0)
DUPLICATES = 0.01


def write_rows(file: Path, rows: int, lengths: Lengths, seed: int = 0) -> None:
    """Write ``rows`` jsonl rows, one in a hundred of them a copy of an earlier one; equal arguments, equal bytes."""
    words = _vocabulary()
    with open(file, "w", encoding="utf-8") as stream:
        for start in range(0, rows, _CHUNK):
            rng = np.random.default_rng([seed, start])
            made = _rows(rng, min(_CHUNK, rows - start), lengths, words)
            for copy in rng.integers(1, len(made), int(DUPLICATES * len(made))) if len(made) > 1 else ():
                made[copy] = made[copy - 1]
            stream.writelines(made)


def evaluation_texts(count: int, seed: int = 1) -> list[str]:
    """Texts that no made row holds, to be looked for in all of them."""
    words = _vocabulary()
    rng = np.random.default_rng([seed, 1])
    return [f"{text} evaluated" for text in _texts(rng, count, (8, 40), words)]


def _rows(rng: np.random.Generator, count: int, lengths: Lengths, words: np.ndarray) -> list[str]:
    queries, positives = (_texts(rng, count, bounds, words) for bounds in (lengths.query, lengths.pos))
    negatives = _texts(rng, count, lengths.neg, words)
    have = rng.random(count) < lengths.negatives
    return [
        json.dumps({"query": query, "pos": [pos], "neg": [neg] if own else []}) + "\n"
        for query, pos, neg, own in zip(queries, positives, negatives, have, strict=True)
    ]


def _texts(rng: np.random.Generator, count: int, bounds: tuple[int, int], words: np.ndarray) -> list[str]:
    sizes = rng.integers(*bounds, count)
    # inverse of the distribution function of density 1 / (rank + 3)
    ranks = np.exp(rng.random(int(sizes.sum())) * np.log(_WORDS / 3)) * 3 - 3
    chosen = words[np.minimum(ranks.astype(np.int64), _WORDS - 1)].tolist()
    ends = [0, *np.cumsum(sizes).tolist()]
    return [" ".join(chosen[a:b]).capitalize() + "." for a, b in itertools.pairwise(ends)]


@cache
def _vocabulary() -> np.ndarray:
    """Distinct words of one to three syllables, the short ones first."""
    pairs = [a + b for a, b in itertools.product(_SYLLABLES, repeat=2)]
    triples = np.random.default_rng(7).integers(0, len(_SYLLABLES), (3 * _WORDS, 3)).tolist()
    words = dict.fromkeys([*_SYLLABLES, *pairs, *("".join(_SYLLABLES[n] for n in triple) for triple in triples)])
    return np.array(list(words)[:_WORDS], dtype=object)
