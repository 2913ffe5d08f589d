"""Settings of training: who takes part in which update, what cannot work together, precision, running out of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import BoomError, Train, parse_recipe
from boom_ray.data.batches import DrawSettings, TrainBatch, local_feed
from boom_ray.data.schedule import Batch
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.train.cache import batch_encoder
from boom_ray.train.engine import PlainEngine, freeze_unused
from boom_ray.train.loop import LoopSettings, Turn, learning_rate, train
from boom_ray.train.meter import StepRecord

TRAIN = Train(batch_size=16, learning_rate=1e-3, temperature=0.05, hard_negatives=2, chunk_tokens=256)


@pytest.fixture(scope="module")
def batches(small_tokens: Path) -> list[TrainBatch]:
    store = TokenStore(small_tokens)
    rows = np.flatnonzero(store.dataset == 0)
    plan = [Batch("ask", rows[step * 8 :][:16], 0) for step in range(5)]
    return list(local_feed(plan, store, DrawSettings(1, 2)))


@pytest.fixture
def encoder(small_base: Callable[..., Path]) -> Encoder:
    loaded = Encoder.load(small_base(), device="cpu")
    freeze_unused(loaded.backbone, loaded.pooling, loaded.pad_id)
    return loaded


def _run(encoder: Encoder, batches: list[TrainBatch], **changes: object) -> list[StepRecord]:
    settings, records = TRAIN.model_copy(update=changes), list[StepRecord]()
    engine = PlainEngine(batch_encoder(encoder, settings), settings)
    train(engine, batches, LoopSettings("member-3", settings, len(batches), 3), records.append)
    return records


@given(st.integers(1, 60), st.integers(1, 9))
def test_every_batch_has_its_share_of_one_update(steps, accumulation):
    turns = [Turn.of(step, steps, accumulation) for step in range(steps)]
    updates = [turn.number for turn in turns if turn.last]
    assert updates == list(range(-(-steps // accumulation)))  # each once, in order, and none is left over at the end
    for number in updates:
        own = [turn for turn in turns if turn.number == number]
        assert [turn.last for turn in own] == [False] * (len(own) - 1) + [True]
        assert {turn.batches for turn in own} == {len(own)}  # shares add up to one
        assert len(own) == accumulation or number == updates[-1]


def test_an_update_takes_the_mean_gradient_of_its_batches(encoder, batches):
    """Two batches and two and one: against AdamW on gradients that are averaged by hand."""
    from boom_ray.train.gather import gather_rows
    from boom_ray.train.loop import global_loss

    start = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    records = _run(encoder, batches, accumulation=2)
    trained = dict(encoder.backbone.state_dict())
    rates = [learning_rate(update, 3, 1e-3, 0.1) for update in range(3)]
    assert [r.learning_rate for r in records] == [rates[0], rates[0], rates[1], rates[1], rates[2]]
    assert [r.grad_norm is None for r in records] == [True, False, True, False, False]

    by_hand = Encoder(encoder.backbone, encoder.tokenizer, encoder.pooling, encoder.max_tokens)
    by_hand.backbone.load_state_dict(start)
    model = batch_encoder(by_hand, TRAIN)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    settings = LoopSettings("by hand", TRAIN, 5, 3)
    for rate, group in zip(rates, (batches[:2], batches[2:4], batches[4:]), strict=True):
        optimizer.zero_grad()
        total = sum(global_loss(model.train(), batch, gather_rows(batch), settings) for batch in group)
        (total / len(group)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, TRAIN.max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    for name, tensor in by_hand.backbone.state_dict().items():
        if "key.bias" not in name:  # its gradient is zero but for rounding, which Adam enlarges
            assert torch.allclose(tensor, trained[name], atol=2e-6), name


def test_bfloat16_on_plain_torch_keeps_float32_weights(encoder, batches):
    """Layers compute in bfloat16: updates are alike, and smaller than bfloat16 can tell."""
    start = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    moved = {}
    for precision in ("float32", "bfloat16"):
        encoder.backbone.load_state_dict(start)
        records = _run(encoder, batches, precision=precision)
        assert all(p.dtype == torch.float32 for p in encoder.backbone.parameters())
        state = encoder.backbone.state_dict()
        names = [name for name in state if "key.bias" not in name and "pooler" not in name]
        moved[precision] = torch.cat([(state[name] - start[name]).flatten() for name in names])
        moved[precision + " loss"] = torch.tensor([r.loss for r in records])
    assert torch.cosine_similarity(moved["float32"], moved["bfloat16"], dim=0) > 0.97
    assert not torch.equal(moved["float32 loss"], moved["bfloat16 loss"])
    assert torch.allclose(moved["float32 loss"], moved["bfloat16 loss"], rtol=0.02)
    weights = torch.cat([tensor.flatten() for tensor in encoder.backbone.state_dict().values()])
    assert (weights != weights.bfloat16()).float().mean() > 0.5


def test_float16_without_a_loss_scale_is_refused(encoder):
    settings = TRAIN.model_copy(update={"precision": "float16"})
    with pytest.raises(BoomError, match=r"needs a loss scale.*bfloat16"):
        PlainEngine(batch_encoder(encoder, settings), settings)


REFUSED = {
    "bfloat16 at ZeRO 0": ({"precision": "bfloat16", "zero_stage": 0}, "zero_stage is 1, 2 or 3"),
    "float16 at ZeRO 0": ({"precision": "float16", "zero_stage": 0}, "zero_stage is 1, 2 or 3"),
    "no optimiser to move": ({"offload": "optimizer", "zero_stage": 0}, "offload optimizer needs zero_stage 1, 2 or 3"),
    "whole weights": ({"offload": "weights", "zero_stage": 2}, "offload weights needs zero_stage 3"),
    "a batch of one": ({"batch_size": 1}, "train.batch_size.*greater than or equal to 2"),
    "adapters of rank 0": ({"lora": {"rank": 0}}, "train.lora.rank"),
    "adapters of nothing": ({"lora": {"targets": []}}, "train.lora.targets"),
    "a misspelt key": ({"accumulate": 2}, "did you mean 'accumulation'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_when_the_recipe_is_read(case):
    changes, told = REFUSED[case]
    raw = {"name": "r", "base": {"model": "m"}, "corpus": {"datasets": [{"path": "p"}]}, "train": changes}
    with pytest.raises(BoomError, match=told):
        parse_recipe(raw)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_out_of_memory_names_member_step_dataset_and_what_to_change(encoder, batches, device):
    def exhaust(*_: object) -> None:
        if device == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")
        torch.empty(1 << 60, dtype=torch.uint8)

    encoder.backbone.encoder.layer[1].register_forward_hook(exhaust)
    with pytest.raises(BoomError) as caught:
        _run(encoder, batches[2:])
    told = str(caught.value)
    assert told.startswith("member-3, step 2, dataset ask: out of memory with ")
    assert f"{batches[2].texts} texts of {batches[2].tokens} tokens" in told
    assert all(key in told for key in ("train.graph_tokens", "train.chunk_tokens", "train.offload", "allocate"))
    assert "\n" not in told


def test_another_error_of_a_step_stays_what_it_is(encoder, batches):
    def fail(*_: object) -> None:
        raise RuntimeError("the connection was closed by its peer")

    encoder.backbone.encoder.layer[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="closed by its peer"):
        _run(encoder, batches)
