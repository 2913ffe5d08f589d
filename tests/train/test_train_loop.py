"""The loop on plain torch: learning rates, losses of global batches, frozen parameters, bad numbers, equal bytes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import BoomError, Train
from boom_ray.data.batches import BatchReader, DrawSettings, Slice, TrainBatch, local_feed, order_digest
from boom_ray.data.schedule import MIXED, Batch, batch_shuffle
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.ledger import Key, Ledger
from boom_ray.train.cache import batch_encoder
from boom_ray.train.engine import PlainEngine, freeze_unused, parameter_groups
from boom_ray.train.gather import gather_rows
from boom_ray.train.loop import LoopSettings, batch_loss, global_loss, learning_rate, train
from boom_ray.train.member import MemberTask, train_plain
from boom_ray.train.meter import StepRecord

TRAIN = Train(batch_size=16, learning_rate=1e-3, temperature=0.05, hard_negatives=2, chunk_tokens=256)


def _schedule(store: TokenStore, seed: int = 5) -> list[Batch]:
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    return list(batch_shuffle(bag, dict.fromkeys(bag, 16), 2, seed, 0).batches)


@pytest.fixture(scope="module")
def store(small_tokens: Path) -> TokenStore:
    return TokenStore(small_tokens)


@pytest.fixture(scope="module")
def batches(store: TokenStore) -> list[TrainBatch]:
    return list(local_feed(_schedule(store), store, DrawSettings(1, 2)))


@pytest.fixture
def encoder(small_base: Callable[..., Path]) -> Encoder:
    return Encoder.load(small_base(), device="cpu")


def _settings(encoder: Encoder, steps: int, **changes: object) -> LoopSettings:
    settings = TRAIN.model_copy(update=changes)
    return LoopSettings("member-7", settings, steps, 3)


@given(st.integers(1, 400), st.floats(0, 0.99), st.floats(1e-6, 1))
def test_learning_rate_rises_to_its_peak_and_falls_to_zero_after_the_last_step(steps, ratio, peak):
    rates = [learning_rate(step, steps, peak, ratio) for step in range(steps)]
    warm = math.ceil(ratio * steps)
    assert max(rates) <= peak * (1 + 1e-12)
    assert all(r > 0 for r in rates)
    if warm:
        assert rates[0] == pytest.approx(peak / warm)
        assert rates[warm - 1] == pytest.approx(peak)
    if warm < steps:
        assert rates[warm] == pytest.approx(peak)
        assert rates[-1] == pytest.approx(peak / (steps - warm))
    assert learning_rate(steps, steps, peak, ratio) == 0
    for curve in (rates[:warm], rates[warm:]):  # each part is a straight line
        steepness = np.diff(curve)
        assert np.allclose(steepness, steepness[:1], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dataset", ["ask", "sort", "group", "alike"])
def test_the_loss_and_its_gradient_do_not_depend_on_how_texts_are_cut(encoder, batches, dataset):
    batch = next(b for b in batches if b.dataset == dataset)
    rows = gather_rows(batch)
    encoder.backbone.eval()
    values, gradients = [], []
    for chunk_tokens in (10**6, 256, 64):
        encoder.backbone.zero_grad()
        settings = _settings(encoder, 1, chunk_tokens=chunk_tokens)
        loss = global_loss(batch_encoder(encoder, settings.train), batch, rows, settings)
        loss.backward()
        values.append(float(loss.detach()))
        used = [p.grad.flatten() for p in encoder.backbone.parameters() if p.grad is not None]
        gradients.append(torch.cat(used).clone())
    assert values[0] > 0
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        assert value == pytest.approx(values[0], rel=2e-6)
        assert (gradient - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def test_freeze_unused_freezes_exactly_the_pooler_of_bert(encoder):
    frozen = freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    assert sorted(frozen) == ["pooler.dense.bias", "pooler.dense.weight"]
    trainable = {n for n, p in encoder.backbone.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in encoder.backbone.named_parameters()} - set(frozen)
    assert all(p.grad is None for p in encoder.backbone.parameters())
    assert freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id) == []


def test_matrices_decay_and_the_rest_does_not(encoder):
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    decayed, plain = parameter_groups(encoder.backbone, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in encoder.backbone.named_parameters()}
    assert all("LayerNorm" not in names[id(p)] and names[id(p)].endswith("weight") for p in decayed["params"])
    assert all("LayerNorm" in names[id(p)] or names[id(p)].endswith("bias") for p in plain["params"])
    counted = sum(p.requires_grad for p in encoder.backbone.parameters())
    assert len(decayed["params"]) + len(plain["params"]) == counted


def test_training_lowers_the_loss_and_logs_every_step(encoder, batches):
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    before = {n: p.detach().clone() for n, p in encoder.backbone.named_parameters()}
    settings, records = _settings(encoder, 3 * len(batches)), list[StepRecord]()
    rounds = [dataclasses.replace(b, step=i * len(batches) + b.step) for i in range(3) for b in batches]
    train(PlainEngine(batch_encoder(encoder, settings.train), settings.train), rounds, settings, records.append)
    assert [r.step for r in records] == list(range(3 * len(batches)))
    assert [r.dataset for r in records] == [b.dataset for b in rounds]
    assert [(r.rows, r.texts, r.tokens) for r in records] == [(b.global_rows, b.texts, b.tokens) for b in rounds]
    assert [r.digest for r in records] == [order_digest(b.row_keys) for b in rounds]
    assert [r.learning_rate for r in records] == [learning_rate(r.step, settings.steps, 1e-3, 0.1) for r in records]
    first, last = records[: len(batches)], records[-len(batches) :]
    assert np.mean([r.loss for r in last]) < 0.9 * np.mean([r.loss for r in first])
    after = dict(encoder.backbone.named_parameters())
    assert {n for n in before if torch.equal(before[n], after[n])} == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_names_member_step_and_dataset(encoder, batches, where):
    settings = _settings(encoder, len(batches))
    engine = PlainEngine(batch_encoder(encoder, settings.train), settings.train)
    if where == "loss":
        with torch.no_grad():
            encoder.backbone.get_input_embeddings().weight[:] = float("nan")
    else:
        encoder.backbone.get_input_embeddings().weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(BoomError) as caught:
        train(engine, batches[3:], settings, lambda _: None)
    assert f"member-7, step 3, dataset {batches[3].dataset}: loss " in str(caught.value)
    assert "train.learning_rate" in str(caught.value)


def _task(root: Path, base: Path, tokens: Path, steps: int) -> MemberTask:
    key = Key("members", "member-0", "0" * 16)
    return MemberTask("member-0", str(root), key, str(base), str(tokens), TRAIN, steps, 11, 1, {"ratio": 0.5})


def test_two_runs_give_the_same_bytes(small_base, small_tokens, store, tmp_path):
    """Whatever the process drew before: weights, tokenizer and small files of both runs are equal, byte by byte."""
    schedule = _schedule(store)
    found = []
    for run in ("one", "two"):
        torch.manual_seed(len(found))
        task = _task(tmp_path / run, small_base(), small_tokens, len(schedule))
        train_plain(task, schedule)
        ledger = Ledger(tmp_path / run)
        ledger.verify(task.key)
        found.append((ledger, ledger.path(task.key), ledger.manifest(task.key)))
    (ledger, one, manifest), (_, two, other) = found
    assert manifest["files"] == other["files"]
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert (one / "model.safetensors").read_bytes() != (small_base() / "model.safetensors").read_bytes()
    meta = manifest["meta"]
    assert (meta["ratio"], meta["steps"], meta["width"], meta["rows"]) == (0.5, len(schedule), 1, 160)
    assert (meta["losses"], meta["order"]) == (other["meta"]["losses"], other["meta"]["order"])
    log = (ledger.root / "scratch" / "members" / f"member-0-{'0' * 16}.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log[1:]] == list(range(len(schedule)))


def test_a_member_has_the_tensors_of_its_base(small_base, small_tokens, store, tmp_path):
    """The merge needs them equal by name, shape and dtype; only the unused pooler keeps its values."""
    from safetensors.torch import load_file

    schedule = _schedule(store)[:2]
    task = _task(tmp_path, small_base(), small_tokens, len(schedule))
    train_plain(task, schedule)
    base, member = (load_file(d / "model.safetensors") for d in (small_base(), Ledger(tmp_path).path(task.key)))
    assert {n: (t.shape, t.dtype) for n, t in base.items()} == {n: (t.shape, t.dtype) for n, t in member.items()}
    same = {n for n in base if torch.equal(base[n], member[n])}
    assert same == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
@pytest.mark.parametrize("graded", ["some", "none", "all"])
def test_the_loss_of_a_mixed_batch_by_brute_force(store, margin, graded):
    """Rows of all datasets, with and without labels: loops over the definition, in float64."""
    rows = np.random.default_rng(4).permutation(len(store))[:40]
    kinds = {"some": [True, False], "none": [False], "all": [True]}[graded]
    names = [d["name"] for d in store.datasets]
    rows = np.array([r for r in rows if (names[store.dataset[r]] == "alike") in kinds])
    batch = BatchReader(store, DrawSettings(1, 2))(Slice(0, 0, MIXED, rows, len(rows)))
    batch = dataclasses.replace(batch, labels=(batch.row_keys % np.uint64(4)).astype(np.int64))
    vectors = np.random.default_rng(5).normal(size=(len(rows) + len(batch.candidates), 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    value = batch_loss(torch.from_numpy(vectors), gather_rows(batch), 0.5, margin)
    assert float(value) == pytest.approx(_loss_by_hand(batch, vectors, 0.5, margin), rel=1e-12)


def _loss_by_hand(batch: TrainBatch, vectors: np.ndarray, temperature: float, margin: float | None) -> float:
    size = len(batch.queries)
    cosine = vectors[:size] @ vectors[size:].T
    plain = [i for i in range(size) if math.isnan(batch.scores[i])]
    graded = [i for i in range(size) if i not in plain]
    texts = [{batch.queries[i].tobytes(), batch.candidates[i].tobytes()} for i in range(size)]
    total = 0.0
    for i in plain:
        seen = []
        for c, candidate in enumerate(batch.candidates):
            owner = int(batch.owners[c])
            alike = [j for j in plain if batch.labels[i] and batch.labels[j] == batch.labels[i]]
            wrong = any(candidate.tobytes() in texts[j] for j in (i, *alike))
            wrong |= margin is not None and cosine[i, c] > cosine[i, i] + margin
            if c == i or (owner in plain and (batch.in_batch[i] or owner == i) and not wrong):
                seen.append(math.exp((cosine[i, c] - cosine[i, i]) / temperature))
        total += math.log(math.fsum(seen))
    pairs = [(i, j) for i in graded for j in graded if batch.scores[i] > batch.scores[j]]
    own = cosine.diagonal()
    total += len(graded) * math.log1p(math.fsum(math.exp((own[j] - own[i]) / temperature) for i, j in pairs))
    return total / size
