"""Texts without padding: the same vectors and gradients as with it, whatever the kernel. Here a kernel of loops stands
for those of GPUs; that torch's own is called as its signature asks is tried on a device that computes nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from backbones import FAMILIES, backbone, found, padded, rounding, texts
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.train.attention import NAME, Packing, install, kernel_for, packed_chunks, torch_kernel
from boom_ray.train.cache import BatchEncoder, Budget


def by_text(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    window: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """Attention by its definition, one text after another."""
    before, after = (size if size >= 0 else packing.longest for size in window)
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    parts = []
    for start, end in itertools.pairwise(packing.ends.tolist()):
        place = torch.arange(end - start)
        seen = (place[None, :] >= place[:, None] - before) & (place[None, :] <= place[:, None] + after)
        scores = torch.einsum("qhd,khd->hqk", query[start:end], key[start:end]) * scale
        shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", shares, value[start:end]))
    return torch.cat(parts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize(("chunk_tokens", "graph_tokens"), [(10**6, None), (64, None), (64, 0), (64, 100)])
def test_vectors_and_gradients_are_those_of_padded_texts(family, pooling, chunk_tokens, graph_tokens):
    """Positions restart and windows end with each text; a text without tokens is read as one of padding."""
    model, sequences = backbone(family), texts()
    plain = BatchEncoder(model, pooling, 0, Budget(10**6))
    plain.forward = lambda rows: padded(model, rows, pooling)
    vectors, gradient = found(plain, sequences)
    install(model)
    packed = BatchEncoder(model, pooling, 0, Budget(chunk_tokens, graph_tokens), by_text)
    ours, same = found(packed, sequences)
    assert (ours - vectors).abs().max() <= rounding(family)
    assert (same - gradient).norm() <= rounding(family) * gradient.norm()
    assert packed.passed.padded == packed.passed.lengths.sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_that_takes_packed_texts_takes_padded_ones_as_before(family):
    model = backbone(family).eval()
    with torch.no_grad():
        before = padded(model, texts(), "mean")
        install(model)
        assert model.config._attn_implementation == NAME
        assert torch.equal(padded(model, texts(), "mean"), before)


def test_layers_that_are_computed_again_get_their_texts_apart():
    model, sequences = backbone("qwen3"), texts()
    install(model)
    packed = BatchEncoder(model, "lasttoken", 0, Budget(64, 0), by_text)
    vectors, gradient = found(packed, sequences)
    model.gradient_checkpointing_enable()
    again, same = found(packed, sequences)
    assert torch.equal(again, vectors)
    assert (same - gradient).norm() <= 1e-10 * gradient.norm()


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 200))
def test_chunks_hold_every_text_once_and_no_more_than_their_budget(lengths, chunk_tokens):
    chunks = packed_chunks(lengths, chunk_tokens)
    sizes = np.array(lengths, dtype=np.int64)
    order = np.concatenate(chunks) if chunks else np.empty(0, np.int64)
    assert sorted(order) == list(range(len(lengths)))
    assert all(a >= b for a, b in itertools.pairwise(sizes[order]))
    totals = [int(sizes[chunk].sum()) for chunk in chunks]
    assert all(total <= chunk_tokens or len(chunk) == 1 for total, chunk in zip(totals, chunks, strict=True))
    for total, following in zip(totals, chunks[1:], strict=False):  # none is cut too early
        assert total + sizes[following[0]] > chunk_tokens


@pytest.mark.parametrize("heads", [2, 1])
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (4, 0), (4, 4)])
def test_torchs_kernel_is_called_as_its_signature_asks(heads, window):
    """On the device ``meta``: shapes only."""
    query = torch.empty(9, 2, 16, device="meta", dtype=torch.bfloat16)
    key, value = (torch.empty(9, heads, 16, device="meta", dtype=torch.bfloat16) for _ in range(2))
    packing = Packing(torch.empty(4, device="meta", dtype=torch.int32), 5, torch_kernel)
    assert torch_kernel(query, key, value, packing, window, 0.25).shape == query.shape


def test_texts_are_padded_where_there_is_no_kernel():
    assert kernel_for(backbone("qwen3"), half=True) is None
