"""Losses against loops in float64 that follow the formulas, and masks against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.train.losses import NO_IN_BATCH, allowed_candidates, cosent, info_nce


def _unit(rows: int, seed: int, width: int = 5) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1)


@st.composite
def keyed_batches(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """(owners, query keys, candidate keys); few different keys, so that texts meet again."""
    size = draw(st.integers(1, 6))
    owners = [*range(size), *draw(st.lists(st.integers(0, size - 1), max_size=8))]
    keys = st.integers(0, 7)
    return owners, draw(st.lists(keys, min_size=size, max_size=size)), [draw(keys) for _ in owners]


def _allowed_by_hand(owners: list[int], queries: list[int], candidates: list[int], in_batch: bool) -> list[list[bool]]:
    allowed = []
    for i, query in enumerate(queries):
        line = []
        for c, candidate in enumerate(candidates):
            same_text = candidate in (candidates[i], query)
            line.append(c == i or ((in_batch or owners[c] == i) and not same_text))
        allowed.append(line)
    return allowed


@given(keyed_batches(), st.booleans())
def test_allowed_candidates_by_brute_force(batch, in_batch):
    owners, queries, candidates = batch
    got = allowed_candidates(torch.tensor(owners), torch.tensor(queries), torch.tensor(candidates), in_batch)
    assert got.tolist() == _allowed_by_hand(owners, queries, candidates, in_batch)
    assert got.diagonal().all()


def test_masks_of_a_small_batch():
    """Query 1 asks what candidate 0 says; candidate 3 is query 0's hard negative and query 2's own positive."""
    owners, queries, candidates = torch.tensor([0, 1, 2, 0]), torch.tensor([10, 20, 30]), torch.tensor([20, 21, 22, 22])
    assert allowed_candidates(owners, queries, candidates, True).int().tolist() == [
        [1, 1, 1, 1],
        [0, 1, 1, 1],
        [1, 1, 1, 0],
    ]
    assert allowed_candidates(owners, queries, candidates, False).int().tolist() == [
        [1, 0, 0, 1],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
    ]
    assert set(NO_IN_BATCH) == {"classification", "clustering"}


@given(keyed_batches(), st.booleans(), st.integers(0, 99), st.sampled_from([0.02, 0.05, 1.0]))
def test_info_nce_by_brute_force(batch, in_batch, seed, temperature):
    owners, queries, candidates = batch
    left, right = _unit(len(queries), seed), _unit(len(owners), seed + 1)
    allowed = _allowed_by_hand(owners, queries, candidates, in_batch)
    total = 0.0
    for i in range(len(queries)):
        logits = [float(left[i] @ right[c]) / temperature for c in range(len(owners))]
        high = max(x for x, ok in zip(logits, allowed[i], strict=True) if ok)
        mass = math.fsum(math.exp(x - high) for x, ok in zip(logits, allowed[i], strict=True) if ok)
        total += math.log(mass) + high - logits[i]
    value = info_nce(left, right, torch.tensor(allowed), temperature)
    assert float(value) == pytest.approx(total / len(queries), rel=1e-12, abs=1e-12)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 99), st.sampled_from([0.02, 0.05, 1.0]))
def test_cosent_by_brute_force(grades, seed, temperature):
    left, right = _unit(len(grades), seed), _unit(len(grades), seed + 1)
    cosine = [float(a @ b) for a, b in zip(left, right, strict=True)]
    exponents = [
        (cosine[j] - cosine[i]) / temperature
        for i in range(len(grades))
        for j in range(len(grades))
        if grades[i] > grades[j]
    ]
    high = max([0.0, *exponents])
    expected = high + math.log(math.exp(-high) + math.fsum(math.exp(x - high) for x in exponents))
    value = cosent(left, right, torch.tensor(grades, dtype=torch.float32), temperature)
    assert float(value) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_cosent_of_equal_grades_is_zero_and_has_a_gradient():
    left = _unit(4, 0).requires_grad_()
    value = cosent(left, _unit(4, 1), torch.ones(4), 0.05)
    assert value == 0
    value.backward()
    assert left.grad is not None
    assert not left.grad.any()


def test_the_order_of_rows_does_not_matter():
    left, right, grades = _unit(8, 0), _unit(8, 1), torch.arange(8).float() // 2
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(8, 8, dtype=torch.bool)
    assert torch.isclose(cosent(left, right, grades, 0.05), cosent(left[order], right[order], grades[order], 0.05))
    assert torch.isclose(info_nce(left, right, allowed, 0.05), info_nce(left[order], right[order], allowed, 0.05))


def test_gradients_of_both_losses():
    grades = torch.tensor([0.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    allowed = torch.tensor(_allowed_by_hand([0, 1, 2, 3, 0, 2], [1, 2, 3, 4], [5, 6, 5, 7, 8, 9], True))
    left, right = _unit(4, 2).requires_grad_(), _unit(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, allowed, 0.5), (left, right))
    assert torch.autograd.gradcheck(lambda a, b: cosent(a, b[:4], grades, 0.5), (left, right))
