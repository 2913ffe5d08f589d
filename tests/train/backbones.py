"""Tiny backbones of every family, texts for them, and what an encoder of them gives."""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from boom_ray.encoder import pool
from boom_ray.train.cache import BatchEncoder

FAMILIES = ("bert", "xlm-roberta", "modernbert", "qwen3")
PAD = 0
_SIZE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_TOKENS = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
_NEAR = {"layer_types": ["full_attention", "sliding_attention"]}  # texts are longer than what the second layer sees


def backbone(family: str, dropout: float = 0.0, **sizes: int) -> torch.nn.Module:
    """Two layers with random weights in float64; those of ModernBERT and Qwen3 have a layer of sliding windows."""
    size = {**_SIZE, **sizes}
    torch.manual_seed(0)
    if family in ("bert", "xlm-roberta"):
        config, model = (BertConfig, BertModel) if family == "bert" else (XLMRobertaConfig, XLMRobertaModel)
        shares = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return model(config(**size, **shares, pad_token_id=PAD), add_pooling_layer=False).double()
    if family == "modernbert":
        config = ModernBertConfig(**size, **_TOKENS, **_NEAR, local_attention=8, attn_implementation="sdpa")
        return ModernBertModel(config).double()
    heads = {"num_key_value_heads": 1, "head_dim": 8}
    return Qwen3Model(Qwen3Config(**size, **heads, **_NEAR, sliding_window=5, use_sliding_window=True)).double()


def rounding(family: str) -> float:
    """Of float64; Qwen3's norms and ModernBERT's positions are float32, whatever the weights are."""
    return 1e-6 if family == "qwen3" else 1e-7 if family == "modernbert" else 1e-10


def texts(count: int = 14) -> list[np.ndarray]:
    """Of mixed length, one without tokens, three of them twice."""
    rng = np.random.default_rng(1)
    made = [rng.integers(2, 60, size=size).astype(np.int32) for size in rng.integers(1, 30, size=count - 4)]
    return [*made, np.zeros(0, np.int32), *made[:3]]


def found(model: BatchEncoder, sequences: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of a forward pass, and the gradient of a loss that looks at all pairs of them."""
    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    vectors = model(sequences)
    loss = torch.nn.functional.cross_entropy(vectors @ vectors.roll(1, 0).T / 0.1, torch.arange(len(vectors)))
    loss.backward()
    return vectors.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def padded(model: torch.nn.Module, sequences: list[np.ndarray], pooling: str) -> torch.Tensor:
    """All texts in one padded pass, duplicates and all."""
    width = max(map(len, sequences))
    ids, mask = torch.full((len(sequences), width), PAD), torch.zeros(len(sequences), width)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        mask[row, : max(1, len(tokens))] = 1
    mask = mask.long()
    return pool(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask, pooling)
