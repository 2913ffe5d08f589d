"""Chunks, kept graphs and checkpoints: the same vectors and gradients as one plain forward pass over the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbones import FAMILIES, backbone, found, padded, rounding, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from boom_ray.encoder import length_chunks
from boom_ray.train.cache import BatchEncoder, Budget, distinct, kept_chunks


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
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
    assert (ours - vectors).abs().max() <= rounding(family)
    assert (same - gradient).norm() <= rounding(family) * gradient.norm()


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
