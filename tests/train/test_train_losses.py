"""Losses against loops in float64 that follow the formulas, and masks against their definition."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.train.losses import allowed_candidates, cosent, info_nce, not_above_positive


def _unit(rows: int, seed: int, width: int = 5) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1)


@dataclass(frozen=True)
class Keyed:
    """A batch as the masks see it; few different keys and labels, so that texts and classes meet again."""

    owners: list[int]
    queries: list[int]
    candidates: list[int]
    in_batch: list[bool]
    labels: list[int]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [torch.tensor(c) for c in (self.owners, self.queries, self.candidates, self.in_batch, self.labels)]


@st.composite
def keyed_batches(draw: st.DrawFn) -> Keyed:
    size = draw(st.integers(1, 6))
    owners = [*range(size), *draw(st.lists(st.integers(0, size - 1), max_size=8))]
    keys = st.integers(0, 7)
    columns = (keys, st.booleans(), st.sampled_from([0, 0, 5, 6]))
    queries, in_batch, labels = (draw(st.lists(c, min_size=size, max_size=size)) for c in columns)
    return Keyed(owners, queries, [draw(keys) for _ in owners], in_batch, labels)


def _allowed_by_hand(batch: Keyed) -> list[list[bool]]:
    allowed = []
    for i, query in enumerate(batch.queries):
        line = []
        for c, candidate in enumerate(batch.candidates):
            same_text = candidate in (batch.candidates[i], query)
            classes = {  # of the rows whose query or positive the candidate is
                batch.labels[j]
                for j in range(len(batch.queries))
                if candidate in (batch.queries[j], batch.candidates[j])
            }
            same_class = batch.labels[i] != 0 and batch.labels[i] in classes
            seen = batch.in_batch[i] or batch.owners[c] == i
            line.append(c == i or (seen and not same_text and not same_class))
        allowed.append(line)
    return allowed


@given(keyed_batches())
def test_allowed_candidates_by_brute_force(batch):
    got = allowed_candidates(*batch.tensors)
    assert got.tolist() == _allowed_by_hand(batch)
    assert got.diagonal().all()


def test_masks_of_a_small_batch():
    """Query 1 asks what candidate 0 says; candidate 3 is query 0's hard negative and query 2's own positive."""

    def masks(in_batch: list[bool], labels: list[int]) -> list[list[int]]:
        return (
            allowed_candidates(*Keyed([0, 1, 2, 0], [10, 20, 30], [20, 21, 22, 22], in_batch, labels).tensors)
            .int()
            .tolist()
        )

    assert masks([True] * 3, [0, 0, 0]) == [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]]
    assert masks([False] * 3, [0, 0, 0]) == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert masks([True, False, True], [0, 0, 0]) == [[1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0]]
    # rows 0 and 2 are of one class: neither's positive, nor the hard negative that is row 2's positive, is a negative
    assert masks([True] * 3, [5, 0, 5]) == [[1, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0]]
    assert masks([False] * 3, [5, 6, 5]) == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


@given(keyed_batches(), st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.5, 3.0]))
def test_candidates_above_the_positive_by_brute_force(batch, seed, margin):
    left, right = _unit(len(batch.queries), seed), _unit(len(batch.owners), seed + 1)
    got = not_above_positive(left, right, margin)
    for i in range(len(left)):
        for c in range(len(right)):
            difference = float(left[i] @ right[c]) - float(left[i] @ right[i])
            assert bool(got[i, c]) == (difference <= margin) or abs(difference - margin) < 1e-12
    assert got.diagonal().all()


def test_the_margin_carries_no_gradient():
    left, right = _unit(4, 0).requires_grad_(), _unit(6, 1).requires_grad_()
    assert not not_above_positive(left, right, 0.1).requires_grad


@given(keyed_batches(), st.integers(0, 99), st.sampled_from([0.02, 0.05, 1.0]))
def test_info_nce_by_brute_force(batch, seed, temperature):
    owners, queries = batch.owners, batch.queries
    left, right = _unit(len(queries), seed), _unit(len(owners), seed + 1)
    allowed = _allowed_by_hand(batch)
    total = 0.0
    for i in range(len(queries)):
        logits = [float(left[i] @ right[c]) / temperature for c in range(len(owners))]
        high = max(x for x, ok in zip(logits, allowed[i], strict=True) if ok)
        mass = math.fsum(math.exp(x - high) for x, ok in zip(logits, allowed[i], strict=True) if ok)
        total += math.log(mass) + high - logits[i]
    value = info_nce(left, right, torch.tensor(allowed), temperature)
    assert float(value) == pytest.approx(total / len(queries), rel=1e-12, abs=1e-12)


graded_rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=9)


@given(graded_rows, st.integers(0, 99), st.sampled_from([0.02, 0.05, 1.0]))
def test_cosent_by_brute_force(rows, seed, temperature):
    grades, datasets = [list(column) for column in zip(*rows, strict=True)]
    left, right = _unit(len(grades), seed), _unit(len(grades), seed + 1)
    cosine = [float(a @ b) for a, b in zip(left, right, strict=True)]
    exponents = [
        (cosine[j] - cosine[i]) / temperature
        for i in range(len(grades))
        for j in range(len(grades))
        if grades[i] > grades[j] and datasets[i] == datasets[j]  # two datasets have two scales
    ]
    high = max([0.0, *exponents])
    expected = high + math.log(math.exp(-high) + math.fsum(math.exp(x - high) for x in exponents))
    value = cosent(left, right, torch.tensor(grades, dtype=torch.float32), torch.tensor(datasets), temperature)
    assert float(value) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_cosent_of_equal_grades_is_zero_and_has_a_gradient():
    left = _unit(4, 0).requires_grad_()
    value = cosent(left, _unit(4, 1), torch.ones(4), torch.zeros(4), 0.05)
    assert value == 0
    value.backward()
    assert left.grad is not None
    assert not left.grad.any()


def test_the_order_of_rows_does_not_matter():
    left, right, grades = _unit(8, 0), _unit(8, 1), torch.arange(8).float() // 2
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(8, 8, dtype=torch.bool)
    one = torch.zeros(8)
    turned = cosent(left[order], right[order], grades[order], one, 0.05)
    assert torch.isclose(cosent(left, right, grades, one, 0.05), turned)
    assert torch.isclose(info_nce(left, right, allowed, 0.05), info_nce(left[order], right[order], allowed, 0.05))


def test_gradients_of_both_losses():
    grades = torch.tensor([0.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    batch = Keyed([0, 1, 2, 3, 0, 2], [1, 2, 3, 4], [5, 6, 5, 7, 8, 9], [True] * 4, [0] * 4)
    allowed = torch.tensor(_allowed_by_hand(batch))
    left, right = _unit(4, 2).requires_grad_(), _unit(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, allowed, 0.5), (left, right))
    assert torch.autograd.gradcheck(lambda a, b: cosent(a, b[:4], grades, torch.zeros(4), 0.5), (left, right))
