"""Small evaluation sets, and tiny random encoders that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_sets import WORDS, make_sets


@pytest.fixture(scope="session")
def sets_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Directories of tiny random encoders, by seed."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from boom_ray.base import build_base
    from boom_ray.config import BuildBase

    root = tmp_path_factory.mktemp("models")
    vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "note", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(root / "tokenizer")

    def make(seed: int) -> Path:
        out = root / f"tiny-{seed}"
        if not out.exists():
            build = BuildBase(layers=2, hidden=32, heads=2, vocab=300, warm_steps=0, learning_rate=1e-3)
            build_base(build, root / "tokenizer", out, "mean", 32, seed)
        return out

    return make
