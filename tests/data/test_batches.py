"""From rows to a batch: the layout by brute force, and draws that depend on the row and the epoch alone."""

from __future__ import annotations

import numpy as np
import pytest

from boom_ray.data.batches import DrawSettings, assemble, local_feed, text_keys
from boom_ray.data.schedule import Batch, batch_shuffle, rank_rows
from boom_ray.data.tokens import TokenRow, TokenStore

ANY = ("any", "retrieval")


def _tokens(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def _row(number: int, positives: int = 1, negatives: int = 0, score: float = float("nan")) -> TokenRow:
    pos = [_tokens(number, 100 + k) for k in range(positives)]
    neg = [_tokens(number, 200 + k) for k in range(negatives)]
    return TokenRow(number.to_bytes(16, "little"), _tokens(number), pos, neg, score)


ROWS = [_row(n, positives=1 + n % 3, negatives=n % 5) for n in range(24)]


@pytest.mark.parametrize("hard", [0, 1, 2, 3, 7])
def test_layout_by_brute_force(hard):
    batch = assemble(4, ANY, ROWS, 1, DrawSettings(17, hard), 48)
    size = len(ROWS)
    assert (batch.step, batch.dataset, batch.task_type, batch.global_rows, batch.scores) == (4, *ANY, 48, None)
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
    batch = assemble(0, ANY, rows, epoch, settings, len(rows))
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


def test_graded_rows_bring_scores_and_only_in_sts():
    rows = [_row(n, score=n / 7) for n in range(5)]
    batch = assemble(0, ("alike", "sts"), rows, 0, DrawSettings(1, 3), 5)
    assert batch.scores is not None
    assert batch.scores.dtype == np.float32
    assert batch.scores.tolist() == [float(np.float32(n / 7)) for n in range(5)]
    assert assemble(0, ANY, rows, 0, DrawSettings(1, 3), 5).scores is None


@pytest.mark.parametrize(("task_type", "graded"), [("sts", True), ("retrieval", False)])
def test_a_rank_without_rows_has_a_batch_of_the_same_kind(task_type, graded):
    """The tail of a dataset may be smaller than the width: every rank must still take the same loss."""
    empty = assemble(0, ("any", task_type), [], 0, DrawSettings(1, 3), 2)
    assert (len(empty.queries), len(empty.candidates), len(empty.owners), empty.global_rows) == (0, 0, 0, 2)
    assert (empty.scores is not None) == graded
    assert (empty.query_keys.shape, empty.candidate_keys.shape) == ((0,), (0,))


def test_keys_are_equal_for_equal_texts_only():
    sequences = [_tokens(1, 2), _tokens(1, 2), _tokens(2, 1), _tokens(1), _tokens(1, 2, 0), _tokens()]
    keys = text_keys(sequences)
    assert keys.dtype == np.int64
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == len(sequences) - 1


def test_local_feed_follows_the_batches(small_tokens):
    store = TokenStore(small_tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    batches: tuple[Batch, ...] = batch_shuffle(bag, dict.fromkeys(bag, 16), 2, 5, 0).batches
    fed = list(local_feed(batches, store, DrawSettings(3, 2)))
    assert [f.step for f in fed] == list(range(len(batches)))
    types = {d["name"]: d["task_type"] for d in store.datasets}
    for batch, got in zip(batches, fed, strict=True):
        assert (got.dataset, got.task_type, got.global_rows) == (batch.dataset, types[batch.dataset], len(batch.rows))
        assert [q.tolist() for q in got.queries] == [r.query.tolist() for r in store.take(batch.rows)]
        assert (got.scores is not None) == (got.task_type == "sts")
