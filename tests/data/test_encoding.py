"""Word by word gives the ids that the tokenizer gives, for every kind of tokenizer and any text."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from boom_ray.data import encoding
from boom_ray.data.encoding import Ragged, TextEncoder

LINES = [
    "The cat sat on the mat, didn't it?",
    "Größe: 12,345 Ωmega naïve café",
    "東京 と 京都 は 古い",
    "[MASK] a_b camelCase",
] * 9
PIECES = st.sampled_from(
    ["cat", "Cat,", "naïve", "e\u0301", "\u0301", "\x01", "\t", "\n", " ", "  ", "\u00a0", "\u2028", "12345"]
    + ["don't", "'s", "東京", "[SEP]", "[MASK]", "Σ", "ΑΣ", "İ", "ﬁ", "_", "a_b", "HTTPServer", "…", "\u200d"]
    + ["👩\u200d👩", "<s>", "ก", "x" * 120]
)
TEXTS = st.lists(
    st.lists(PIECES | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=3), max_size=12).map(
        "".join
    )
    | st.lists(PIECES, max_size=9).map(" ".join),
    max_size=6,
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _bert(lower):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer


def _byte_level(pattern):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _ours():
    from boom_ray.data import wordpiece

    tokenizer = wordpiece._untrained()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


KINDS = {
    "bert": (lambda: _bert(True), ""),
    "cased": (lambda: _bert(False), ""),
    "ours": (_ours, ""),
    "gpt2": (lambda: _byte_level(None), " "),
    "qwen": (lambda: _byte_level(encoding._BYTE_LEVEL[0]), " "),
    "llama": (lambda: _byte_level(encoding._BYTE_LEVEL[1]), " "),
    "other": (lambda: _byte_level(r"\w+|\s+|[^\w\s]+"), None),
    "unigram": (_unigram, None),
}


@cache
def _pair(kind, most, side):
    """The tokenizer and our encoder of it, with [CLS] and [SEP], cut to ``most`` tokens."""
    tokenizer = KINDS[kind][0]()
    if kind != "qwen":
        ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    if most:
        tokenizer.enable_truncation(most, direction=side)
    file = Path(mkdtemp()) / "tokenizer.json"
    tokenizer.save(str(file))
    ours = TextEncoder(file)
    assert ours._joint == KINDS[kind][1]
    return tokenizer, ours


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS, most=st.sampled_from([0, 3, 12]), side=st.sampled_from(["right", "left"]))
@example(texts=["", " ", "a", "a b", "a  b", "\n a \n", "a \u0301b", "x [SEP] [MASK]  y"], most=0, side="right")
@settings(max_examples=150)
def test_ids_are_those_of_the_tokenizer(kind, texts, most, side):
    tokenizer, ours = _pair(kind, most, side)
    expected = [e.ids for e in tokenizer.encode_batch(texts)]
    got = ours(texts)
    assert [part.tolist() for part in np.split(got.values, got.stops)[:-1]] == expected
    assert got.values.dtype == np.int32


def test_words_are_forgotten_when_they_are_too_many(monkeypatch):
    tokenizer, ours = _pair("bert", 0, "right")
    monkeypatch.setattr(encoding, "_MOST_CHARACTERS", 50)
    for number in range(9):
        texts = [f"cat {number} {k} mat" for k in range(20)]
        got = ours(texts)
        assert np.split(got.values, got.stops)[3].tolist() == tokenizer.encode(texts[3]).ids
        assert len(ours._numbers) < 200


def test_ragged_rows_are_taken_and_cut():
    rows = Ragged.of_lists([[1, 2, 3], [], [4]])
    assert rows.take(np.array([2, 0, 1, 0])).values.tolist() == [4, 1, 2, 3, 1, 2, 3]
    assert rows.cut(2, from_left=False).values.tolist() == [1, 2, 4]
    assert rows.cut(2, from_left=True).values.tolist() == [2, 3, 4]
    assert rows.cut(0, from_left=True).lengths.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_that_are_cut_are_counted_as_often_as_they_stand(kind, side):
    tokenizer, ours = _pair(kind, 7, side)
    texts = [*LINES, *LINES[:5], "a"]
    tokenizer.no_truncation()
    longer = sum(len(e.ids) > 7 for e in tokenizer.encode_batch(texts))
    tokenizer.enable_truncation(7, direction=side)
    assert 0 < longer < len(texts)
    before = ours.cut
    ours(texts)
    assert ours.cut - before == longer
