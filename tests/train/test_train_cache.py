"""Chunks, kept graphs and checkpoints: the same vectors and gradients as one plain forward pass over the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel, Qwen3Config, Qwen3Model

from boom_ray.encoder import length_chunks, pool
from boom_ray.train.cache import BatchEncoder, Budget, distinct, kept_chunks

SIZE = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}


def backbone(family: str, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(0)
    if family == "bert":
        shares = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return BertModel(BertConfig(**SIZE, **shares), add_pooling_layer=False).double()
    if family == "modernbert":
        return ModernBertModel(ModernBertConfig(**SIZE, **TOKENS, attn_implementation="sdpa")).double()
    return Qwen3Model(Qwen3Config(**SIZE, num_key_value_heads=1, head_dim=8)).double()


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
    ids, mask = torch.zeros(len(sequences), width, dtype=torch.long), torch.zeros(len(sequences), width)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        mask[row, : max(1, len(tokens))] = 1
    mask = mask.long()
    return pool(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask, pooling)


@pytest.mark.parametrize(
    ("family", "pooling"), [("bert", "mean"), ("bert", "cls"), ("modernbert", "mean"), ("qwen3", "lasttoken")]
)
@pytest.mark.parametrize("chunk_tokens", [64, 150, 10**6])
@pytest.mark.parametrize("graph_tokens", [None, 0, 100])
def test_vectors_and_gradients_are_those_of_one_padded_pass(family, pooling, chunk_tokens, graph_tokens):
    """In float64, to 1e-10: whatever the chunks, whatever is kept; the gradient of a text that stands twice adds up."""
    model, sequences = backbone(family), texts()
    plain = BatchEncoder(model, pooling, 0, Budget(10**6))
    plain.forward = lambda rows: padded(model, rows, pooling)
    vectors, gradient = found(plain, sequences)
    ours, same = found(BatchEncoder(model, pooling, 0, Budget(chunk_tokens, graph_tokens)), sequences)
    assert gradient.norm() > 0.1
    rounding = 1e-7 if family == "qwen3" else 1e-10  # Qwen3's norms are float32, whatever the weights are
    assert (ours - vectors).abs().max() <= rounding
    assert (same - gradient).norm() <= rounding * gradient.norm()


@pytest.mark.parametrize("graph_tokens", [0, 64, 200, None])
@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_dropout_is_the_same_in_a_chunk_that_is_computed_again(graph_tokens, layers):
    model, sequences = backbone("bert", dropout=0.2), texts()
    vectors, gradient = found(BatchEncoder(model, "mean", 0, Budget(64)), sequences)
    assert not torch.equal(vectors, found(BatchEncoder(model.eval(), "mean", 0, Budget(64)), sequences[::-1])[0])
    if layers:
        model.gradient_checkpointing_enable()
    ours, same = found(BatchEncoder(model, "mean", 0, Budget(64, graph_tokens)), sequences)
    assert torch.equal(ours, vectors)
    assert (same - gradient).norm() <= 1e-10 * gradient.norm()


def test_equal_texts_are_encoded_once():
    model, sequences = BatchEncoder(backbone("bert"), "mean", 0, Budget(10**6)), texts()
    counted = []
    for rows in (sequences, [s for s in sequences for _ in range(3)]):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(rows)
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1]
    unique, place = distinct(sequences)
    assert len(unique) == len(sequences) - 3
    assert all(np.array_equal(unique[p], s) for p, s in zip(place, sequences, strict=True))


def test_only_what_is_not_kept_is_computed_again():
    """Multiplications of a step: once forward, twice backward, and once more for what is computed again."""
    model, sequences = backbone("bert"), texts(20)
    forward, kept, again = (0, 0, 0)
    for budget in (Budget(100), Budget(100, 0)):
        encoder = BatchEncoder(model, "mean", 0, budget)
        with FlopCounterMode(display=False) as counter:
            vectors = encoder(sequences)
            forward = counter.get_total_flops()
            vectors.sum().backward()
        kept, again = again, counter.get_total_flops()
    assert forward > 0
    assert again - kept == pytest.approx(forward, rel=0.02)


def test_a_rank_without_texts_has_a_gradient_of_zeros():
    model = BatchEncoder(backbone("bert"), "mean", 0, Budget(100, 0))
    vectors = model([])
    assert vectors.shape == (0, 16)
    vectors.sum().backward()
    used = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(used) > 20
    assert not any(g.any() for g in used)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 200), st.integers(0, 900))
def test_the_last_chunks_are_kept_as_far_as_the_budget_goes(lengths, chunk_tokens, graph_tokens):
    sizes = [len(c) * lengths[c[0]] for c in length_chunks(lengths, chunk_tokens)]
    kept = kept_chunks(sizes, graph_tokens)
    assert sum(sizes[len(sizes) - kept :]) <= graph_tokens
    assert kept == len(sizes) or sum(sizes[len(sizes) - kept - 1 :]) > graph_tokens
    assert kept_chunks(sizes, None) == len(sizes)
