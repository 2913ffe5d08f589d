"""What a step tells of itself: FLOPs against torch's own counter, tokens and padding by hand, time, event files."""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel, Qwen3Config, Qwen3Model

from boom_ray.config import Train
from boom_ray.data.batches import DrawSettings, local_feed, run_digest
from boom_ray.data.schedule import batch_shuffle
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.train.board import Board, scalars
from boom_ray.train.cache import batch_encoder
from boom_ray.train.engine import PlainEngine, freeze_unused
from boom_ray.train.loop import LoopSettings, train
from boom_ray.train.meter import FlopRule, Meter, StepRecord, named_peak, rates, summarise

SIZE = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TOKENS = 24


def _bert() -> torch.nn.Module:
    return BertModel(BertConfig(**SIZE, attn_implementation="eager"), add_pooling_layer=False)


def _qwen3() -> torch.nn.Module:
    shape = {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}  # heads are wider than hidden / heads
    return Qwen3Model(Qwen3Config(**SIZE, **shape, attn_implementation="eager"))


def _counted(backbone: torch.nn.Module) -> int:
    with FlopCounterMode(display=False) as counter:
        ids = torch.arange(3, 3 + TOKENS)[None]
        backbone(input_ids=ids).last_hidden_state.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("make", [_bert, _qwen3])
@pytest.mark.parametrize("trained", [True, False])
def test_model_flops_are_those_that_torch_counts(make, trained):
    """Eager attention computes all pairs of tokens; a causal model needs half of them, which is what the rule says."""
    backbone = make().eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.Linear):
            module.requires_grad_(trained)
    rule = FlopRule.of(backbone)
    assert rule.causal == (make is _qwen3)
    every_pair = dataclasses.replace(rule, causal=False)
    assert every_pair(np.array([TOKENS])) == pytest.approx(_counted(backbone), rel=2e-3)  # of which rotations are 1e-3
    half = every_pair(np.array([TOKENS])) - rule(np.array([TOKENS]))
    assert half == (6 * rule.width * TOKENS**2 * 3 if rule.causal else 0)


def test_flops_of_a_batch_are_the_sum_over_its_texts():
    rule = FlopRule(per_token=10, width=2, spans=(float("inf"), 5.0), causal=False)
    assert rule(np.array([3])) == 10 * 3 + 24 * (9 + 9)
    assert rule(np.array([8])) == 10 * 8 + 24 * (64 + 40)  # the second layer sees five tokens
    assert rule(np.array([3, 8])) == rule(np.array([3])) + rule(np.array([8]))


def test_a_window_and_a_pooler_are_seen():
    window = ModernBertModel(ModernBertConfig(**SIZE, local_attention=8, global_attn_every_n_layers=3, pad_token_id=0))
    assert FlopRule.of(window).spans == (float("inf"), 9.0, 9.0)
    pooled = BertModel(BertConfig(**SIZE))
    assert FlopRule.of(pooled).per_token == FlopRule.of(_bert()).per_token


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("Tesla T4", 65.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name(name, tera):
    assert named_peak(name) == (None if tera is None else tera * 1e12)


@pytest.fixture(scope="module")
def trained(small_base, small_tokens) -> tuple[list, list[StepRecord]]:
    """Batches, and the records of training on them while the feed is slow and one text is in a batch twice."""
    store = TokenStore(small_tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    plan = batch_shuffle(bag, dict.fromkeys(bag, 16), 2, 5, 0).batches[:5]
    batches = list(local_feed(plan, store, DrawSettings(1, 2)))
    encoder = Encoder.load(small_base(), device="cpu")
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    recipe = Train(batch_size=16, chunk_tokens=64, learning_rate=1e-3)
    records: list[StepRecord] = []

    def slow():
        for batch in batches:
            time.sleep(0.02)
            yield batch

    engine = PlainEngine(batch_encoder(encoder, recipe), recipe)
    train(engine, slow(), LoopSettings("member-0", recipe, len(batches), 3), records.append)
    return batches, records


def test_tokens_and_padding_by_hand(trained):
    batches, records = trained
    for batch, record in zip(batches, records, strict=True):
        texts = batch.queries + batch.candidates
        assert (record.texts, record.tokens) == (len(texts), sum(map(len, texts)))
        lengths = sorted((len(text) for text in {t.tobytes(): t for t in texts}.values()), reverse=True)
        padded, rest = 0, lengths
        while rest:
            fits = [n for n in range(1, len(rest) + 1) if n * rest[0] <= 64 and n * rest[0] - sum(rest[:n]) <= 4]
            padded += max(fits, default=1) * rest[0]
            rest = rest[max(fits, default=1) :]
        assert (record.encoded, record.padded) == (sum(lengths), padded)
        assert record.rates["padding_share"] == pytest.approx(1 - sum(lengths) / padded)
    assert any(record.encoded < record.tokens for record in records)


def test_time_is_divided_into_waiting_and_work(trained):
    _, records = trained
    for record in records:
        assert 0.02 <= record.waited < record.seconds
        assert record.rates["stall_share"] == pytest.approx(record.waited / record.seconds)
        assert record.rates["texts_per_second"] == pytest.approx(record.texts / record.seconds)
        assert (record.mfu, record.flops > 0, record.memory > 2**20) == (None, True, True)


def test_the_end_of_the_feed_ends_the_meter(trained, small_base):
    encoder = Encoder.load(small_base(), device="cpu")
    model = batch_encoder(encoder, Train())
    assert list(Meter(model).fed([])) == []
    assert list(Meter(model).fed(iter(trained[0]))) == trained[0]


def test_a_record_survives_its_line(trained):
    for record in trained[1]:
        line = json.loads(json.dumps(record.line()))
        assert StepRecord.read(line) == record
        assert line["tokens_per_second"] == record.rates["tokens_per_second"]


def test_the_summary_adds_up(trained):
    _, records = trained
    told = summarise(records)
    assert told["steps"] == len(records)
    for name in ("rows", "texts", "tokens"):
        assert told[name] == sum(getattr(r, name) for r in records)
    assert told["order"] == run_digest(r.digest for r in records)
    assert sum(d["steps"] for d in told["datasets"].values()) == len(records)
    points = sorted(point for d in told["datasets"].values() for point in d["losses"])
    assert points == told["losses"] == [[r.step, round(r.loss, 5)] for r in records]
    steady = records[1:]
    assert told["measured"]["texts_per_second"] == rates(steady)["texts_per_second"]
    assert told["measured"]["step_seconds"] == pytest.approx(np.mean([r.seconds for r in steady]))
    assert told["measured"]["grad_norm"] == np.median([r.grad_norm for r in steady])
    assert told["measured"]["mfu"] is None


def test_what_is_known_of_no_step_and_of_one(trained):
    assert summarise([])["measured"] == {}
    one = trained[1][:1]
    assert summarise(one)["measured"]["texts_per_second"] == rates(one)["texts_per_second"]


def test_steps_without_an_update_have_no_norm(trained):
    gathering = [dataclasses.replace(r, grad_norm=None if r.step % 2 else r.grad_norm) for r in trained[1]]
    kept = [r.grad_norm for r in gathering[1:] if r.grad_norm is not None]
    assert summarise(gathering)["measured"]["grad_norm"] == np.median(kept)
    assert "optimizer/grad_norm" not in scalars(gathering[1])


def test_event_files_hold_every_scalar(trained, tmp_path):
    board = Board(tmp_path)
    for record in trained[1]:
        board(record)
    board.close()
    found = {(tag, step): value for step, tag, value in _events(tmp_path)}
    for record in trained[1]:
        assert found["loss/all", record.step] == pytest.approx(record.loss)
        assert found[f"loss_by_dataset/{record.dataset}", record.step] == pytest.approx(record.loss)
        assert found["speed/stall_share", record.step] == pytest.approx(record.rates["stall_share"])
    assert not any(tag == "speed/mfu" for tag, _ in found)


def test_a_member_that_goes_on_hides_what_it_does_again(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog

    Board(tmp_path, start=7).close()
    starts = [e.step for e in _read(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [7]


def _events(folder: Path):
    for event in _read(folder):
        for value in event.summary.value:
            yield event.step, value.tag, value.simple_value


def _read(folder: Path):
    """Records of TensorBoard's files: length, its checksum, an event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
