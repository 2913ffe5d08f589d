"""Words, n-grams and shingles of many texts at once, as hashes.

A word is what stands between spaces and punctuation; of scripts that are written without spaces (Han, kana, Thai, Lao,
Khmer, Burmese) every character is one. Words are compared after NFKC and lower case.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: words at other places of an n-gram count differently
_MOST_WORDS = 1 << 19  # hashes kept, about 60 MB


@dataclass(frozen=True)
class Words:
    """The words of n texts, one after another.

    Attributes:
        hashes: uint64 [total].
        ends: int64 [n], where each text's words end.
    """

    hashes: np.ndarray
    ends: np.ndarray

    def owners(self) -> np.ndarray:
        """int64 [total]: the text of every word."""
        return np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=0))

    def stops(self) -> np.ndarray:
        """int64 [total]: where the words of each word's text end."""
        return np.repeat(self.ends, np.diff(self.ends, prepend=0))


class WordHasher:
    """Splits and hashes texts; remembers the hashes of words that it has seen lately."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> Words:
        found = [words_of(text) for text in texts]
        if len(self._known) > _MOST_WORDS:
            self._known.clear()
        known = self._known
        for words in found:
            for word in words:
                if word not in known:
                    known[word] = _word_hash(word)
        ends = np.cumsum([len(words) for words in found], dtype=np.int64)
        total = int(ends[-1]) if len(ends) else 0
        return Words(np.fromiter((known[w] for words in found for w in words), np.uint64, total), ends)


def words_of(text: str) -> list[str]:
    """The words of a text, folded."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()
    return _WORD.findall(folded)


def ngrams(words: Words, length: int) -> tuple[np.ndarray, np.ndarray]:
    """``(hashes, owners)`` of all runs of exactly ``length`` words inside a text: uint64 [m] and int64 [m]."""
    hashes = shingles(words, length)
    whole = np.arange(len(hashes)) + length <= words.stops()
    return hashes[whole], words.owners()[whole]


def shingles(words: Words, length: int) -> np.ndarray:
    """uint64 [total]: the hash of the ``length`` words that start at each word, of fewer at the end of a text.

    So a text of w words has w shingles, however short it is.
    """
    total, stops, places = len(words.hashes), words.stops(), np.arange(len(words.hashes))
    combined = np.zeros(total, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for step in range(min(length, total)):
            here = words.hashes[step:] * (places[: total - step] + step < stops[: total - step])
            combined *= _MULTIPLIER
            combined[: total - step] += here
        combined ^= combined >> np.uint64(32)
        return combined * _MULTIPLIER


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
