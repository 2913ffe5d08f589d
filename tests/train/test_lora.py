"""Low-rank adapters: training starts at the base, and what is folded is what was trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import backbone, found, texts

from boom_ray.config import BoomError, Checkpoints, Lora, Train
from boom_ray.data.batches import DrawSettings, local_feed
from boom_ray.data.schedule import Batch
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.ledger import Key, Ledger
from boom_ray.train import checkpoint
from boom_ray.train.cache import BatchEncoder, Budget, batch_encoder
from boom_ray.train.engine import PlainEngine, freeze_unused
from boom_ray.train.loop import LoopSettings, train
from boom_ray.train.lora import adapt
from boom_ray.train.member import MemberTask, load, train_plain

LORA = Lora(rank=3, alpha=7, dropout=0.0, targets=("query", "value", "dense"))
TRAIN = Train(batch_size=16, learning_rate=1e-2, temperature=0.05, hard_negatives=2, lora=LORA)


@pytest.fixture(scope="module")
def store(small_tokens: Path) -> TokenStore:
    return TokenStore(small_tokens)


def _batches(store: TokenStore, steps: int = 4) -> list[Batch]:
    return [Batch("ask", np.flatnonzero(store.dataset == 0)[step * 10 :][:16], 0) for step in range(steps)]


def _adapted(small_base: Callable[..., Path], seed: int = 5, lora: Lora = LORA) -> Encoder:
    encoder = Encoder.load(small_base(), device="cpu")
    adapt(encoder.backbone, lora, seed)
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    return encoder


def _learn(encoder: Encoder, store: TokenStore) -> PlainEngine:
    engine = PlainEngine(batch_encoder(encoder, TRAIN), TRAIN)
    feed = local_feed(_batches(store), store, DrawSettings(1, 2))
    train(engine, feed, LoopSettings("member-0", TRAIN, 4, 3), lambda _: None)
    return engine


def test_training_starts_at_the_base_and_trains_adapters_only(small_base):
    base, encoder = Encoder.load(small_base(), device="cpu"), _adapted(small_base)
    sentences = ["old cat", "new ship tree", "song"]
    assert np.array_equal(encoder.encode(sentences), base.encode(sentences))  # one factor is zero
    trained = [name for name, p in encoder.backbone.named_parameters() if p.requires_grad]
    # per layer: query, value, and the dense layers of attention, intermediate and output; two factors each
    assert len(trained) == 2 * 5 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert not any("pooler" in name for name in trained)


def test_the_draw_of_the_adapters_follows_the_seed(small_base):
    one, same, other = (_adapted(small_base, seed).backbone.state_dict() for seed in (5, 5, 6))
    (drawn,) = {name for name in one if "layer.0.attention.self.query.lora_A" in name}
    assert torch.equal(one[drawn], same[drawn])
    assert not torch.equal(one[drawn], other[drawn])


def test_folded_tensors_are_the_adapted_model(small_base, store):
    """Names and shapes are the base's, vectors those of the adapted layers; the model that trains is not touched."""
    base, encoder = Encoder.load(small_base(), device="cpu"), _adapted(small_base)
    engine = _learn(encoder, store)
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    folded = dict(engine.tensors())
    assert {n: tuple(t.shape) for n, t in folded.items()} == engine.shapes
    start = base.backbone.state_dict()
    assert {n: t.shape for n, t in folded.items()} == {n: t.shape for n, t in start.items()}
    moved = {name for name, tensor in folded.items() if not torch.equal(tensor, start[name])}
    last = {name.rpartition(".")[0].rpartition(".")[2] for name in moved}
    assert len(moved) == 10
    assert last == set(LORA.targets)
    for name in moved:  # the change has the rank that was asked for
        assert torch.linalg.matrix_rank((folded[name] - start[name]).double(), rtol=1e-4) == LORA.rank
    assert all(torch.equal(t, before[n]) for n, t in encoder.backbone.state_dict().items())
    base.backbone.load_state_dict(folded)
    sentences = ["old cat", "new ship tree", "song"]
    encoder.backbone.eval()
    assert np.abs(base.encode(sentences) - encoder.encode(sentences)).max() <= 1e-6


def test_a_member_trained_with_adapters_is_a_plain_model(small_base, small_tokens, store, tmp_path):
    """Twice the same bytes; the directory loads without peft's names."""
    weights = []
    for run in ("one", "two"):
        key, root = Key("members", "member-0", "0" * 16), tmp_path / run
        settings = TRAIN.model_copy(update={"lora": LORA.model_copy(update={"dropout": 0.3})})
        task = MemberTask("member-0", str(root), key, str(small_base()), str(small_tokens), settings, 4, 11, 1)
        train_plain(task, _batches(store))
        directory = Ledger(root).path(key)
        weights.append((directory / "model.safetensors").read_bytes())
        assert Encoder.load(directory, device="cpu").encode(["old cat"]).shape == (1, 32)
    assert weights[0] == weights[1]
    assert weights[0] != (small_base() / "model.safetensors").read_bytes()


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
@pytest.mark.parametrize("graph_tokens", [None, 0, 100])
def test_gradients_of_adapters_do_not_depend_on_chunks_or_on_what_is_computed_again(graph_tokens, layers):
    model, sequences = backbone("bert"), texts()
    adapt(model, LORA, 5)
    with torch.no_grad():  # a factor of zero has no gradient to compare
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    vectors, gradient = found(BatchEncoder(model.double(), "mean", 0, Budget(10**6)), sequences)
    if layers:
        model.gradient_checkpointing_enable()
    ours, same = found(BatchEncoder(model, "mean", 0, Budget(64, graph_tokens)), sequences)
    assert gradient.norm() > 0.1
    assert (ours - vectors).abs().max() <= 1e-10
    assert (same - gradient).norm() <= 1e-10 * gradient.norm()


def test_a_target_that_the_backbone_lacks_is_named_with_those_it_has(small_base, small_tokens, tmp_path):
    settings = TRAIN.model_copy(update={"lora": Lora(targets=("query", "q_proj", "up_proj"))})
    key = Key("members", "member-0", "0" * 16)
    task = MemberTask("member-0", str(tmp_path), key, str(small_base()), str(small_tokens), settings, 4, 11, 1)
    with pytest.raises(BoomError) as caught:
        load(task, "cpu")
    assert "no linear module is named q_proj, up_proj; this backbone has dense, key, query, value" in str(caught.value)


class _Cut(list[Batch]):
    """The last of these batches cannot be had."""

    def __getitem__(self, step: Any) -> Any:
        if step == len(self) - 1:
            raise InterruptedError
        return super().__getitem__(step)


def test_adapters_go_on_from_a_checkpoint_to_the_same_bytes(small_base, small_tokens, store, tmp_path):
    """With dropout, in bfloat16, two batches in an update; the last batch cannot be read at first."""
    lora = LORA.model_copy(update={"dropout": 0.3})
    settings = TRAIN.model_copy(update={"lora": lora, "precision": "bfloat16", "accumulation": 2})
    key, weights = Key("members", "member-0", "0" * 16), []
    for run in ("undisturbed", "interrupted"):
        task = MemberTask(
            "member-0", str(tmp_path / run), key, str(small_base()), str(small_tokens), settings, 6, 11, 1
        )
        task = replace(task, checkpoints=Checkpoints(every=1, keep=2))
        if run == "interrupted":
            with pytest.raises(InterruptedError):
                train_plain(task, _Cut(_batches(store, 6)))
            deadline = time.monotonic() + 30  # what a thread still writes is whole a moment later
            while not (found := checkpoint.newest(task)) or found.step != 4:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert all(".lora_" in name for name in found.names("weights"))
        train_plain(task, _batches(store, 6))
        weights.append((Ledger(tmp_path / run).path(key) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
