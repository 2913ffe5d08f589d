"""From rows to a batch: the layout by brute force, and draws that depend on the row and the epoch alone."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from boom_ray.config import ScheduleName
from boom_ray.data.batches import (
    DrawSettings,
    Slice,
    TrainBatch,
    assemble,
    local_feed,
    order_digest,
    row_keys,
    run_digest,
    text_keys,
)
from boom_ray.data.rules import DatasetRule, dataset_rules
from boom_ray.data.schedule import MIXED, SMALLEST_TAIL, Schedule, global_order, rank_rows, whole_run
from boom_ray.data.tokens import TokenRow, TokenStore

ANY = DatasetRule("retrieval")
GRADED = DatasetRule("sts", graded=True, symmetric=True, place=3)


def _tokens(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def _row(number: int, positives: int = 1, negatives: int = 0, score: float = float("nan"), label: int = 0) -> TokenRow:
    pos = [_tokens(number, 100 + k) for k in range(positives)]
    neg = [_tokens(number, 200 + k) for k in range(negatives)]
    return TokenRow(number.to_bytes(16, "little"), _tokens(number), pos, neg, score, label)


def _assemble(
    rows: list[TokenRow], epoch: int, settings: DrawSettings, rule: DatasetRule = ANY, in_batch: bool = True
) -> TrainBatch:
    part = Slice(4, epoch, "any", np.arange(len(rows)), 48, in_batch)
    return assemble(part, rows, [rule] * len(rows), settings)


ROWS = [_row(n, positives=1 + n % 3, negatives=n % 5) for n in range(24)]


@pytest.mark.parametrize("hard", [0, 1, 2, 3, 7])
def test_layout_by_brute_force(hard):
    batch = _assemble(ROWS, 1, DrawSettings(17, hard))
    size = len(ROWS)
    assert (batch.step, batch.dataset, batch.global_rows) == (4, "any", 48)
    assert np.isnan(batch.scores).all()
    assert batch.in_batch.all()
    assert batch.row_keys.tolist() == list(range(size))  # the first 8 bytes of the ids
    assert [q.tolist() for q in batch.queries] == [[n] for n in range(size)]
    assert batch.owners[:size].tolist() == list(range(size))
    expected_owners = [n for n in range(size) for _ in range(min(hard, n % 5))]
    assert batch.owners[size:].tolist() == expected_owners
    assert batch.owners.dtype == np.int64
    assert len(batch.candidates) == len(batch.owners) == len(batch.candidate_keys)
    for n in range(size):
        assert batch.candidates[n].tolist() in [p.tolist() for p in ROWS[n].pos]
        mine = [c.tolist() for c, o in zip(batch.candidates[size:], batch.owners[size:], strict=True) if o == n]
        assert len({tuple(c) for c in mine}) == len(mine) == min(hard, n % 5)  # without replacement
        assert all(c in [x.tolist() for x in ROWS[n].neg] for c in mine)
    assert batch.texts == 2 * size + len(expected_owners)
    assert batch.tokens == sum(len(s) for s in [*batch.queries, *batch.candidates])


def _drawn(rows: list[TokenRow], epoch: int, settings: DrawSettings) -> dict[bytes, list[list[int]]]:
    """What each row brought: its positive, then its negatives in order."""
    batch = _assemble(rows, epoch, settings)
    brought: dict[bytes, list[list[int]]] = {row.id: [] for row in rows}
    for owner, candidate in zip(batch.owners, batch.candidates, strict=True):
        brought[rows[owner].id].append(candidate.tolist())
    return brought


def test_a_draw_depends_on_the_row_and_the_epoch_and_not_on_neighbours():
    settings = DrawSettings(17, 2)
    whole = _drawn(ROWS, 3, settings)
    order = np.random.default_rng(0).permutation(len(ROWS))
    assert _drawn([ROWS[i] for i in order], 3, settings) == whole
    for width in (2, 4, 8):
        for rank in range(width):
            part = [ROWS[i] for i in rank_rows(np.arange(len(ROWS)), rank, width)]
            assert _drawn(part, 3, settings) == {row.id: whole[row.id] for row in part}
    assert _drawn(ROWS, 4, settings) != whole
    assert _drawn(ROWS, 3, DrawSettings(18, 2)) != whole


def test_every_positive_and_negative_has_its_turn_over_epochs():
    row = _row(1, positives=3, negatives=5)
    draws = [_drawn([row], epoch, DrawSettings(17, 2))[row.id] for epoch in range(600)]
    positives = np.bincount([d[0][1] - 100 for d in draws], minlength=3)
    negatives = np.bincount([n[1] - 200 for d in draws for n in d[1:]], minlength=5)
    assert np.abs(positives - 200).max() <= 5 * np.sqrt(600 * 1 / 3 * 2 / 3)
    assert np.abs(negatives - 240).max() <= 5 * np.sqrt(600 * 2 / 5 * 3 / 5)


def test_graded_rows_bring_scores_and_no_negatives():
    rows = [_row(n, negatives=2, score=n / 7 if n % 2 else float("nan")) for n in range(5)]
    batch = _assemble(rows, 0, DrawSettings(1, 3), GRADED)
    assert batch.scores.dtype == np.float32
    expected = [n / 7 if n % 2 else np.nan for n in range(5)]
    assert np.array_equal(batch.scores, np.array(expected, np.float32), equal_nan=True)
    assert batch.owners[5:].tolist() == [0, 0, 2, 2, 4, 4]  # a row without a score is no graded row
    assert batch.datasets.tolist() == [3] * 5
    assert np.isnan(_assemble(rows, 0, DrawSettings(1, 3)).scores).all()  # the dataset decides, not the score


@pytest.mark.parametrize(("own", "asked", "brought"), [(None, 3, 3), (1, 3, 1), (0, 3, 0), (4, 0, 4)])
def test_a_dataset_may_say_how_many_hard_negatives(own, asked, brought):
    batch = _assemble([_row(1, negatives=6)], 0, DrawSettings(1, asked), DatasetRule("retrieval", hard_negatives=own))
    assert len(batch.candidates) == 1 + brought


def test_every_row_obeys_the_rule_of_its_own_dataset():
    rules = [ANY, DatasetRule("classification", in_batch=False, hard_negatives=1, place=1), GRADED]
    rows = [_row(n, negatives=3, score=0.5, label=7 * n) for n in range(3)]
    batch = assemble(Slice(0, 0, MIXED, np.arange(3), 3), rows, rules, DrawSettings(1, 2))
    assert batch.in_batch.tolist() == [True, False, True]
    assert batch.labels.tolist() == [0, 7, 14]
    assert batch.datasets.tolist() == [0, 1, 3]
    assert batch.owners[3:].tolist() == [0, 0, 1]
    assert np.isnan(batch.scores).tolist() == [True, True, False]
    second_stage = assemble(Slice(0, 0, MIXED, np.arange(3), 3, False), rows, rules, DrawSettings(1, 2))
    assert not second_stage.in_batch.any()


@pytest.mark.parametrize("rule", [ANY, GRADED])
def test_a_rank_without_rows_has_an_empty_batch(rule):
    """The tail of a dataset may be smaller than the width: every rank takes part all the same."""
    empty = _assemble([], 0, DrawSettings(1, 3), rule)
    assert (len(empty.queries), len(empty.candidates), len(empty.owners), empty.global_rows) == (0, 0, 0, 48)
    arrays = (empty.query_keys, empty.candidate_keys, empty.labels, empty.datasets, empty.in_batch, empty.row_keys)
    assert all(array.shape == (0,) for array in (*arrays, empty.scores))
    assert (empty.row_keys.dtype, empty.in_batch.dtype) == (np.uint64, bool)


def test_keys_are_equal_for_equal_texts_only():
    sequences = [_tokens(1, 2), _tokens(1, 2), _tokens(2, 1), _tokens(1), _tokens(1, 2, 0), _tokens()]
    keys = text_keys(sequences)
    assert keys.dtype == np.int64
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == len(sequences) - 1


def _plan(store: TokenStore, name: ScheduleName, epochs: int = 2) -> tuple:
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    return whole_run(bag, Schedule(name, 14, SMALLEST_TAIL, dataset_rules(store.datasets)), 5, epochs, None).batches


@pytest.mark.parametrize("name", get_args(ScheduleName))
def test_local_feed_follows_the_batches(small_tokens, name):
    store = TokenStore(small_tokens)
    batches = _plan(store, name)
    fed = list(local_feed(batches, store, DrawSettings(3, 2)))
    assert [f.step for f in fed] == list(range(len(batches)))
    rules = list(dataset_rules(store.datasets).values())
    for batch, got in zip(batches, fed, strict=True):
        own = [rules[d] for d in store.dataset[batch.rows]]
        assert (got.dataset, got.global_rows) == (batch.dataset, len(batch.rows))
        assert [q.tolist() for q in got.queries] == [r.query.tolist() for r in store.take(batch.rows)]
        assert (~np.isnan(got.scores)).tolist() == [rule.graded for rule in own]
        assert got.in_batch.tolist() == [rule.in_batch and batch.in_batch for rule in own]
        assert got.row_keys.tolist() == row_keys(store.ids[batch.rows]).tolist()
    if name == "example_shuffle":
        assert any(len(set(got.datasets)) == 4 for got in fed)


@pytest.mark.parametrize("name", get_args(ScheduleName))
def test_steps_have_the_same_digest_for_any_width_and_after_a_kill_at_any_step(small_tokens, name):
    """Row ids per step, order included: 1, 2, 4 and 8 ranks, and a feed that starts at any step of the run."""
    store = TokenStore(small_tokens)
    batches = _plan(store, name, 1)
    expected = [order_digest(row_keys(store.ids[batch.rows])) for batch in batches]
    assert len(set(expected)) == len(expected)
    for width in (1, 2, 4, 8):
        parts = [[row_keys(store.ids[rank_rows(b.rows, rank, width)]) for rank in range(width)] for b in batches]
        assert [order_digest(np.concatenate(p)[global_order([len(k) for k in p])]) for p in parts] == expected
    for start in range(len(batches) + 1):
        again = list(local_feed(_plan(store, name, 1), store, DrawSettings(3, 2), start))
        assert [b.step for b in again] == list(range(start, len(batches)))
        assert [order_digest(b.row_keys) for b in again] == expected[start:]


def test_digests_tell_rows_and_orders_apart():
    keys = np.arange(5, dtype=np.uint64)
    assert order_digest(keys) == order_digest(keys.copy())
    assert len({order_digest(k) for k in (keys, keys[::-1], keys[:4], keys + np.uint64(1))}) == 4
    assert run_digest(["a", "b"]) != run_digest(["b", "a"])
