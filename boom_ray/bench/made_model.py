"""A Qwen3 of random weights whose texts are made of the words ``w0``, ``w1``, ..., one token each: for speed alone."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from math import exp, log
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """Of a Qwen3 decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocab: int


QWEN3_06B = Shape(layers=28, hidden=1024, heads=16, kv_heads=8, head=128, inner=3072, vocab=151_936)
TINY = Shape(layers=2, hidden=32, heads=2, kv_heads=1, head=16, inner=64, vocab=500)
_SPECIAL = ("<pad>", "<eos>", "<unk>")


def make_model(shape: Shape, max_tokens: int, out: Path) -> None:
    """Write a sentence-transformers directory: last-token pooling, and a tokenizer that ends every text with <eos>."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    from boom_ray.model_files import write_modules

    config = Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        max_position_embeddings=max(max_tokens, 64),
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    Qwen3Model(config).save_pretrained(out)
    words = [*_SPECIAL, *(f"w{i}" for i in range(shape.vocab - len(_SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "padding_side": "right"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **names).save_pretrained(out)
    write_modules(out, "lasttoken", shape.hidden, max_tokens, {})


def write_texts(file: Path, rows: int, negatives: int, shape: Shape, max_tokens: int) -> None:
    """``rows`` lists of a query, its positive and its negatives, as JSON.

    Queries have a 64th to an 8th of ``max_tokens``, passages a 16th to all of it, evenly on the logarithm.
    """
    rng = random.Random(17)

    def text(least: float, most: float) -> str:
        size = round(exp(rng.uniform(log(max(1.0, least)), log(most))))
        return " ".join(f"w{rng.randrange(shape.vocab - len(_SPECIAL))}" for _ in range(size))

    made = [
        [
            text(max_tokens / 64, max_tokens / 8),
            *(text(max_tokens / 16, max_tokens - 1) for _ in range(1 + negatives)),
        ]
        for _ in range(rows)
    ]
    file.write_text(json.dumps(made))
