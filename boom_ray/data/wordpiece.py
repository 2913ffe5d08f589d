"""A tokenizer trained on the corpus: cased WordPiece that knows how identifiers are written.

Words are split at punctuation, at underscores (which are dropped: ``read_csv`` reads like "read csv"), at the humps of
camelCase, and digits go in threes. The trained files load with ``AutoTokenizer.from_pretrained``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SAMPLE_CHARACTERS = 8_000_000
_CHARACTERS_PER_TOKEN = 6
_INSIDE = 0xF0000  # a private-use plane: where a character inside a word is put while merges are learned
SPLITS = ("_+", r"\p{Lu}+(?!\p{Ll})|\p{Lu}?\p{Ll}+|\p{Nd}{1,3}")  # none matches across a space


def train_tokenizer(corpus_dir: Path, vocab: int, max_tokens: int, out: Path) -> None:
    """Train a tokenizer of ``vocab`` tokens on a sample of the row shards and write it to the folder ``out``.

    [PAD] is token 0. Equal corpora give equal bytes.
    """
    from tokenizers import models, processors

    tokenizer = _untrained()
    texts = _sample(corpus_dir, max_tokens * _CHARACTERS_PER_TOKEN)
    words = Counter(word for text in texts for word in _words(tokenizer, text))
    tokens = [*SPECIAL.values(), *_learn(words, vocab - len(SPECIAL))]
    numbers = {token: number for number, token in enumerate(tokens)}
    tokenizer.model = models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100)
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    ends = [(token, numbers[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(out / "special_tokens_map.json", SPECIAL)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens, "do_lower_case": False}
    _write_json(out / "tokenizer_config.json", config | SPECIAL | {"clean_up_tokenization_spaces": False})


def _untrained() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS[0]), "removed"),
            pre_tokenizers.Split(Regex(SPLITS[1]), "isolated"),
            pre_tokenizers.BertPreTokenizer(),
        ]
    )
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def _learn(words: Counter[str], size: int) -> list[str]:
    """The ``size`` best word pieces, those inside a word with ``##``; the same ones in every run.

    The library numbers "##x" pieces in the random order of a hash map, and ties between merges then fall at random. So
    a character inside a word is learned as another single character (moved to a private plane): single characters
    are numbered in their own order, and the merges are those of WordPiece training.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = _alphabet(words, size)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False)
    moved = {_moved(word): count for word, count in sorted(words.items()) if alphabet.issuperset(_pieces(word))}
    learner.train_from_iterator(_repeated(moved), trainer)
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    return [_named(token) for token, _ in learned]


def _alphabet(words: Counter[str], size: int) -> set[str]:
    """The most frequent characters, begin and inside told apart, up to half of the vocabulary; ties by character."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for piece in _pieces(word):
            counts[piece] += count
    return set(sorted(counts, key=lambda piece: (-counts[piece], piece))[: size // 2])


def _pieces(word: str) -> list[str]:
    return list(_moved(word))


def _moved(word: str) -> str:
    return word[0] + "".join(chr(_INSIDE + ord(c)) for c in word[1:])


def _named(token: str) -> str:
    plain = "".join(chr(ord(c) - _INSIDE) if ord(c) >= _INSIDE else c for c in token)
    return plain if ord(token[0]) < _INSIDE else f"##{plain}"


def _repeated(words: dict[str, int]) -> Iterator[str]:
    for word, count in words.items():
        for start in range(0, count, 1000):
            yield " ".join([word] * min(1000, count - start))


def _words(tokenizer: Any, text: str) -> Iterator[str]:
    """Words of the basic plane; rarer characters (emoji, old scripts) stay unknown to the tokenizer."""
    for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
        if word.isascii() or max(word) < "\U00010000":
            yield word


def _sample(corpus_dir: Path, most: int) -> Iterable[str]:
    """Queries and positives, each once and cut to ``most`` characters, of rows spread evenly over all shards."""
    shards = sorted(corpus_dir.glob("rows-*.arrow"))
    total = sum(_text_bytes(shard) for shard in shards)
    step = max(1, -(-total // SAMPLE_CHARACTERS))
    texts: dict[str, None] = {}
    for shard in shards:
        table = pa.ipc.open_file(pa.memory_map(str(shard))).read_all().select(["query", "pos"])
        for batch in table.take(pa.array(range(0, len(table), step))).to_batches():
            for row in batch.to_pylist():
                texts.update(dict.fromkeys(text[:most] for text in (row["query"], *row["pos"])))
    return texts


def _text_bytes(shard: Path) -> int:
    table = pa.ipc.open_file(pa.memory_map(str(shard))).read_all()
    return sum(c.nbytes for name in ("query", "pos") for c in table.column(name).chunks)


def _write_json(file: Path, value: dict[str, Any] | Sequence[Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
