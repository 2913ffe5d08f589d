"""The objective: dev rows by hash, the training loss on them, relative to the base."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from boom_ray.config import BoomError
from boom_ray.data.bag_rules import BagRule
from boom_ray.data.bagging import dev_rows, draw, membership_hash
from boom_ray.data.batches import DrawSettings
from boom_ray.data.membership import corpus_rows
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.search.objective import dev_batches, dev_losses, relative_loss

DRAW = DrawSettings(17, 2)


@pytest.fixture(scope="module")
def drawn(small_tokens):
    return draw(corpus_rows(small_tokens), [BagRule("subset", 0.5, 0), BagRule("subset", 1.0, 1)], (0.1, 12), 3)


@pytest.mark.parametrize("half", ["a", "b"])
def test_dev_batches_hold_the_dev_rows_of_lowest_hash(small_tokens, drawn, half):
    rows, store = corpus_rows(small_tokens), TokenStore(small_tokens)
    for most in (200, 4):
        batches = {b.dataset: b for b in dev_batches(small_tokens, drawn, half, most, DRAW)}
        assert set(batches) == set(rows.names)
        for name, found in dev_rows(rows, drawn, half).items():
            hashes = membership_hash(rows.ids[found], drawn.dev_seed)
            chosen = np.sort(found[np.argsort(hashes)][:most])
            assert len(chosen) == min(6, most)
            expected = [r.query.tolist() for r in store.take(chosen)]
            assert [q.tolist() for q in batches[name].queries] == expected
            assert batches[name].global_rows == len(chosen)
    a, b = (dev_batches(small_tokens, drawn, h, 200, DRAW) for h in "ab")
    texts = [{q.tobytes() for batch in half_batches for q in batch.queries} for half_batches in (a, b)]
    assert not texts[0] & texts[1]


def test_a_corpus_without_dev_rows_is_refused(small_tokens):
    drawn = draw(corpus_rows(small_tokens), [BagRule("subset", 1.0, 0)], (0.0001, 0), 3)
    with pytest.raises(BoomError, match=r"corpus\.dev\.fraction"):
        dev_batches(small_tokens, drawn, "a", 200, DRAW)


def test_losses_by_brute_force_from_encoded_vectors(small_base, small_tokens, drawn):
    """InfoNCE and CoSENT in float64 loops over the vectors that the encoder gives the same texts."""
    encoder = Encoder.load(small_base(), device="cpu")
    batches = dev_batches(small_tokens, drawn, "a", 200, DRAW)
    losses = dev_losses(encoder.backbone, batches, encoder.pooling, encoder.pad_id, 0.05)
    assert set(losses) == {b.dataset for b in batches}
    for batch in batches:
        one = _vectors(encoder, batch.queries), _vectors(encoder, batch.candidates)
        cosine = (one[0] @ one[1].T) / 0.05
        if batch.dataset == "alike":
            own = np.diagonal(cosine)
            pairs = [
                math.exp(own[j] - own[i])
                for i in range(len(own))
                for j in range(len(own))
                if batch.scores[i] > batch.scores[j]
            ]
            expected = math.log1p(math.fsum(pairs))
        else:
            expected = _info_nce(cosine, batch)
        assert losses[batch.dataset] == pytest.approx(expected, rel=1e-4)


def _vectors(encoder: Encoder, sequences: list[np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        rows = [
            encoder.backbone(
                input_ids=torch.tensor(s[None].astype(np.int64)), attention_mask=torch.ones(1, len(s))
            ).last_hidden_state[0]
            for s in sequences
        ]
    vectors = np.stack([r.double().mean(0).numpy() for r in rows])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _info_nce(logits: np.ndarray, batch) -> float:
    total = 0.0
    for i, query in enumerate(batch.queries):
        positive = batch.candidates[i]
        seen = [
            c
            for c, candidate in enumerate(batch.candidates)
            if c == i
            or (
                (batch.in_batch[i] or batch.owners[c] == i)
                and candidate.tobytes() not in (positive.tobytes(), query.tobytes())
            )
        ]
        total += math.log(math.fsum(math.exp(logits[i, c] - logits[i, i]) for c in seen))
    return total / len(batch.queries)


def test_relative_loss():
    base = {"a": 2.0, "b": 0.5}
    assert relative_loss(base, base) == 1
    assert relative_loss({"a": 1.0, "b": 0.5}, base) == pytest.approx(0.75)
    assert relative_loss({"a": 2000.0, "b": 500.0}, base) == pytest.approx(1000)
    assert not math.isfinite(relative_loss({"a": math.nan, "b": 0.5}, base))
    assert relative_loss({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.5}) == 0  # a perfect base divides nothing by zero


def test_an_empty_draw_of_negatives_is_a_draw(small_tokens, drawn):
    batch = dev_batches(small_tokens, drawn, "a", 200, DrawSettings(17, 0))[0]
    assert len(batch.candidates) == len(batch.queries)
