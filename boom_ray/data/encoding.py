"""Texts to token ids, exactly as ``tokenizers`` gives them, several times as fast.

Nearly all words of a corpus occur again and again. A tokenizer that never looks across a space gives a word the same
tokens wherever it stands, so that a text's ids are those of its words, one after another; each word is then encoded
once and looked up from there on. Of a tokenizer that is not known to be so, whole texts are encoded.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.data.wordpiece import SPLITS

_NORMALIZERS = ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents")  # character by character
_WORD_PIECE = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")  # these drop spaces
# A word of a byte-level BPE begins with the space before it. These patterns (Qwen 2 and 3; Llama 3; GPT-2's is built
# in) never match across the end of a word.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = (_PATTERN % "", _PATTERN % "{1,3}")
_MORE_SPACE = re.compile(r"^\s|\s$|\s\s|[^\S ]")  # more than single spaces between words
_MOST_CHARACTERS = 2 << 20  # of the words that are known at once: about 40 MB
_BREAK = "\0"  # between words; no text holds it


class _Numbers(dict[str, int]):
    """Numbers words as they come."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class TextEncoder:
    """``encoder(texts)`` gives token ids, special tokens and truncation as the file says.

    Attributes:
        cut: texts so far that were longer than the truncation allows.
    """

    cut: int
    _numbers: _Numbers
    _known: Ragged
    _characters: int

    def __init__(self, tokenizer: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        raw = json.loads(tokenizer.read_text("utf-8"))
        self._joint = _joint(raw)
        self._ends = self._special_tokens() if self._joint is not None else None
        self._truncation = raw["truncation"]
        self.cut = 0
        self._forget()

    def __call__(self, texts: Sequence[str]) -> Ragged:
        if self._joint is None or self._ends is None:
            return self._whole(texts)
        if self._characters > _MOST_CHARACTERS:
            self._forget()
        rows = [self._broken(text) for text in texts]
        numbers = self._number(_BREAK.join(rows).split(_BREAK) if rows else [])
        words = self._known.take(numbers)
        ends = np.cumsum([row.count(_BREAK) + 1 for row in rows], dtype=np.int64)
        return self._framed(Ragged(words.values, np.diff(words.stops[ends - 1], prepend=0)))

    def _whole(self, texts: Sequence[str]) -> Ragged:
        """Every distinct text encoded by itself."""
        numbers = _Numbers()
        order = np.fromiter(map(numbers.__getitem__, texts), np.int64, len(texts))
        encoded = self._tokenizer.encode_batch_fast(list(numbers))
        overlong = np.fromiter((bool(e.overflowing) for e in encoded), bool, len(encoded))
        self.cut += int(overlong[order].sum())
        return Ragged.of_lists([e.ids for e in encoded]).take(order)

    def _broken(self, text: str) -> str:
        if self._joint == "":
            return text.replace(" ", _BREAK)
        return text if _MORE_SPACE.search(text) else text.replace(" ", _BREAK + " ")

    def _number(self, words: list[str]) -> np.ndarray:
        """int64 [n]: the numbers of words, new ones encoded."""
        before = len(self._numbers)
        numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
        new = list(itertools.islice(self._numbers, before, None))
        if new:
            encoded = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
            self._known = self._known.with_(Ragged.of_lists([e.ids for e in encoded]))
            self._characters += sum(map(len, new))
        return numbers

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._known = Ragged.of_lists([])
        self._characters = 0

    def _framed(self, bare: Ragged) -> Ragged:
        """Texts cut to their room, with the special tokens around them."""
        assert self._ends is not None
        first, last = self._ends
        cut = bare
        if self._truncation is not None:
            room = _room(self._truncation, len(first) + len(last))
            self.cut += int((bare.lengths > room["most"]).sum())
            cut = bare.cut(**room)
        whole = Ragged.of_lengths(cut.lengths + (len(first) + len(last)))
        values = np.empty(whole.total, np.int32)
        for place, token in enumerate(first):
            values[whole.starts + place] = token
        for place, token in enumerate(reversed(last)):
            values[whole.stops - 1 - place] = token
        values[np.repeat(whole.starts + len(first) - cut.starts, cut.lengths) + np.arange(cut.total)] = cut.values
        return Ragged(values, whole.lengths)

    def _special_tokens(self) -> tuple[list[int], list[int]] | None:
        """What stands before and after every text; None where that cannot be told."""
        self._tokenizer.no_truncation()
        bare, whole = (self._tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
        places = [p for p in range(len(whole) - len(bare) + 1) if whole[p : p + len(bare)] == bare]
        return (whole[: places[0]], whole[places[0] + len(bare) :]) if len(places) == 1 and bare else None


class Ragged:
    """Rows of unequal length, one after another: ``values`` int32 [total], ``lengths`` int64 [n]."""

    def __init__(self, values: np.ndarray, lengths: np.ndarray) -> None:
        self.values, self.lengths = values, lengths
        self.stops = np.cumsum(lengths, dtype=np.int64)
        self.starts = self.stops - lengths
        self.total = int(self.stops[-1]) if len(lengths) else 0

    @classmethod
    def of_lists(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls(np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths)

    @classmethod
    def of_lengths(cls, lengths: np.ndarray) -> Ragged:
        """Where rows of these lengths lie; no values."""
        return cls(np.empty(0, np.int32), lengths)

    def with_(self, other: Ragged) -> Ragged:
        values, lengths = (
            np.concatenate(pair) for pair in ((self.values, other.values), (self.lengths, other.lengths))
        )
        return Ragged(values, lengths)

    def take(self, rows: np.ndarray) -> Ragged:
        return self._slices(self.starts[rows], self.lengths[rows])

    def cut(self, most: int, from_left: bool) -> Ragged:
        """At most ``most`` values of each row; ``from_left``: the last ones stay."""
        if not len(self.lengths) or self.lengths.max() <= most:
            return self
        kept = np.minimum(self.lengths, most)
        return self._slices(self.stops - kept if from_left else self.starts, kept)

    def _slices(self, starts: np.ndarray, lengths: np.ndarray) -> Ragged:
        taken = Ragged.of_lengths(lengths)
        return Ragged(self.values[np.repeat(starts - taken.starts, lengths) + np.arange(taken.total)], lengths)


def _joint(raw: dict[str, Any]) -> str | None:
    """What a word brings along from the text before it: nothing or a space; None: words do not stand by themselves."""
    normalizers, splitters = ([*_steps(raw[part])] for part in ("normalizer", "pre_tokenizer"))
    spaced = any(" " in token["content"] or token["lstrip"] or token["rstrip"] for token in raw["added_tokens"])
    if spaced or any(step["type"] not in _NORMALIZERS for step in normalizers):
        return None
    kind, last = raw["model"]["type"], splitters[-1] if splitters else {"type": None}
    if kind == "WordPiece" and last["type"] in _WORD_PIECE:
        return "" if all(_pattern(step) in SPLITS for step in splitters[:-1]) else None
    if kind == "BPE" and last["type"] == "ByteLevel" and not raw["model"].get("dropout"):
        known = [_pattern(step) in _BYTE_LEVEL for step in splitters[:-1]]
        return " " if (known == [True] and not last["use_regex"]) or (known == [] and last["use_regex"]) else None
    return None


def _steps(part: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    if part is None:
        return []
    return [step for step in part.get("normalizers") or part.get("pretokenizers") or [part] if step]


def _pattern(step: dict[str, Any]) -> str | None:
    return step["pattern"].get("Regex") if step["type"] == "Split" else None


def _room(truncation: dict[str, Any], special: int) -> dict[str, Any]:
    """What :meth:`Ragged.cut` is told: the ids of a text that stay beside ``special`` others."""
    return {"most": max(truncation["max_length"] - special, 0), "from_left": truncation["direction"] == "Left"}
