"""Checkpoints on plain torch: an interrupted member ends with the bytes of an undisturbed one."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from boom_ray.config import Averages, BoomError, Checkpoints, Train
from boom_ray.data.batches import local_feed
from boom_ray.data.schedule import Batch, batch_shuffle
from boom_ray.data.tokens import TokenStore
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import average_keys, paused_key
from boom_ray.train import checkpoint, member
from boom_ray.train.averages import RunningAverages, factors
from boom_ray.train.cache import batch_encoder
from boom_ray.train.checkpoint import due
from boom_ray.train.engine import PlainEngine
from boom_ray.train.loop import LoopSettings, train
from boom_ray.train.member import MemberTask, StepLog, train_plain
from boom_ray.train.state import KINDS

EVERY = 4
AVERAGES = Averages(ema=0.9, last=3, every=3)
TRAIN = Train(
    batch_size=16, learning_rate=1e-3, temperature=0.05, hard_negatives=2, chunk_tokens=256, averages=AVERAGES
)
TIMES = ("seconds", "waited", "mfu", "memory", "texts_per_second", "tokens_per_second", "stall_share")


class Stop(Exception):
    """What ends a run in between."""


class Interrupted(list[Batch]):
    """Batches of which one cannot be had; before each of the others somebody draws random numbers."""

    def __init__(self, batches: list[Batch], at: int | None = None) -> None:
        super().__init__(batches)
        self.at = at

    def __getitem__(self, step: Any) -> Any:
        if step == self.at:
            raise Stop(f"step {step}")
        random.random(), np.random.random(), torch.rand(step % 5)
        return super().__getitem__(step)


@pytest.fixture(scope="module")
def batches(small_tokens: Path) -> list[Batch]:
    """Two epochs of 11 batches: the second of three checkpoints lies in the first, the third in the second."""
    store = TokenStore(small_tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    found = [b for epoch in (0, 1) for b in batch_shuffle(bag, dict.fromkeys(bag, 16), 2, 5, epoch).batches]
    assert EVERY * 2 < len(found) // 2 < EVERY * 3 < len(found) - EVERY
    return found


@pytest.fixture(scope="module")
def make_task(small_base: Callable[..., Path], small_tokens: Path, batches: list[Batch]) -> Callable[..., MemberTask]:
    def make(root: Path, **changes: Any) -> MemberTask:
        key = Key("members", "member-3", "0" * 16)
        task = MemberTask("member-3", str(root), key, str(small_base()), str(small_tokens), TRAIN, len(batches), 11, 1)
        return replace(task, checkpoints=Checkpoints(every=EVERY, keep=2), **changes)

    return make


@pytest.fixture(scope="module")
def undisturbed(make_task, batches, tmp_path_factory) -> MemberTask:
    task = make_task(tmp_path_factory.mktemp("undisturbed"))
    train_plain(task, batches)
    return task


@pytest.fixture(scope="module")
def stopped(make_task, batches, tmp_path_factory) -> MemberTask:
    """A member that came to an end before step 14, with checkpoints of the steps 8 and 12."""
    task = make_task(tmp_path_factory.mktemp("stopped"))
    with pytest.raises(Stop):
        train_plain(task, Interrupted(batches, 14))
    _settle(task)
    assert [path.name for path in sorted(task.checkpoint_folder.iterdir())] == ["step-000000008", "step-000000012"]
    return task


@pytest.fixture
def copied(stopped: MemberTask, tmp_path: Path) -> MemberTask:
    shutil.copytree(stopped.root, tmp_path / "run")
    return replace(stopped, root=str(tmp_path / "run"))


def _settle(task: MemberTask) -> None:
    """What was being written when the run ended is whole, as its process lives on."""
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join(30)


def _left(task: MemberTask) -> list[Any]:
    """What a member leaves, but for times: its files and its averages', by checksum; order and curve; its step log."""
    ledger = Ledger(task.root)
    keys = [task.key, *average_keys(task.key, task.train.averages).values()]
    for key in keys:
        ledger.verify(key)
    meta = ledger.manifest(task.key)["meta"]
    return [
        *(ledger.manifest(key)["files"] for key in keys),
        [meta[name] for name in ("order", "losses", "steps", "rows", "texts", "tokens")],
        logged(task),
    ]


def logged(task: MemberTask) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in task.log_file.read_text().splitlines()]
    assert lines[0]["steps"] == task.steps
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines[1:]]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 8))
def test_a_checkpoint_is_due_at_the_first_update_that_completes_every_so_many_batches(steps, every, accumulation):
    taken = [done for done in range(1, steps + 1) if due(done, steps, every, accumulation)]
    wanted = {-(-n // accumulation) * accumulation for n in range(every, steps + 1, every)}
    assert taken == sorted(done for done in wanted if done < steps)


@pytest.mark.parametrize("at", [EVERY, EVERY + 1, 2 * EVERY - 1, 14])
def test_an_interrupted_member_ends_as_an_undisturbed_one(make_task, batches, undisturbed, tmp_path, at):
    """Weights, averages and step log are equal bit for bit, although both processes draw random numbers between."""
    task = make_task(tmp_path)
    with pytest.raises(Stop):
        train_plain(task, Interrupted(batches, at))
    _settle(task)
    begun = checkpoint.newest(task)
    assert begun is not None
    assert begun.step == at // EVERY * EVERY
    hour_ago = time.time() - 3600
    os.utime(task.log_file, (hour_ago, hour_ago))
    torch.manual_seed(at)
    train_plain(task, Interrupted(batches))
    assert _left(task) == _left(undisturbed)
    assert 3600 <= Ledger(task.root).manifest(task.key)["meta"]["idle"] < 3660  # no device was held in between
    assert not task.checkpoint_folder.exists()
    assert checkpoint.newest(task) is None


@pytest.mark.parametrize("stops", [[5, 13], [1]])
def test_a_member_that_is_stopped_and_goes_on_ends_as_an_undisturbed_one(
    make_task, batches, undisturbed, tmp_path, stops
):
    """A search of ratios stops members at its rungs; what they are there is kept, and what comes after is the same."""
    task, ledger = make_task(tmp_path), Ledger(tmp_path)
    for stop in stops:
        part = replace(task, stop=stop)
        train_plain(part, batches)
        assert ledger.has(part.lands)
        assert not ledger.has(task.key)
        assert part.lands == paused_key(task.key, stop)
        assert len(logged(task)) == stop
        assert checkpoint.newest(task).step == stop
        begun = checkpoint.at(replace(task, start=stop))
        for name, value in load_file(ledger.path(part.lands) / "model.safetensors").items():
            kept = f"weights:{name}" in begun.names("weights")  # what takes no gradient is in no checkpoint
            assert not kept or torch.equal(value, begun.read(f"weights:{name}")), name
        assert ledger.manifest(part.lands)["meta"]["member"] == task.key.name
    train_plain(replace(task, stop=len(batches)), batches)
    assert _left(task) == _left(undisturbed)


def test_a_member_goes_on_from_no_step_after_the_one_where_it_stops(make_task, batches, tmp_path):
    task, ledger = make_task(tmp_path), Ledger(tmp_path)
    for stop in (6, 3):
        train_plain(replace(task, stop=stop), batches)
    short, long = (load_file(ledger.path(paused_key(task.key, s)) / "model.safetensors") for s in (3, 6))
    assert any(not torch.equal(short[name], long[name]) for name in short)
    again = make_task(tmp_path / "again")
    train_plain(replace(again, stop=3), batches)
    other = load_file(Ledger(again.root).path(paused_key(task.key, 3)) / "model.safetensors")
    assert all(torch.equal(short[name], other[name]) for name in short)


def test_a_member_that_is_interrupted_before_every_step_ends_all_the_same(make_task, batches, undisturbed, tmp_path):
    task = make_task(tmp_path)
    for at in range(len(batches)):
        with pytest.raises(Stop):
            train_plain(task, Interrupted(batches, at))
        _settle(task)
    train_plain(task, batches)
    assert _left(task) == _left(undisturbed)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def _cut_log(path: Path) -> None:
    """Ten steps instead of the twelve of the newest checkpoint."""
    log = path.parents[3] / f"{path.parents[2].name}.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:11]))


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "one bit": ("part-00000/model.safetensors is damaged", lambda c: _flip(c / "part-00000" / "model.safetensors")),
    "no file": (
        "part-00000/model.safetensors is damaged or missing",
        lambda c: (c / "part-00000/model.safetensors").unlink(),
    ),
    "no marker": ("no readable checkpoint.json", lambda c: (c / "checkpoint.json").unlink()),
    "half a marker": ("no readable checkpoint.json", lambda c: (c / "checkpoint.json").write_text('{"format"')),
    "another member": (
        "of another member",
        lambda c: (c / "checkpoint.json").write_text((c / "checkpoint.json").read_text().replace("0" * 16, "1" * 16)),
    ),
    "a shorter log": ("has 10 steps only", lambda c: _cut_log(c / "checkpoint.json")),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(copied, batches, undisturbed, caplog, damage):
    words, spoil = DAMAGE[damage]
    spoil(copied.checkpoint_folder / "step-000000012")
    with caplog.at_level(logging.WARNING):
        begun = checkpoint.newest(copied)
    assert begun is not None
    assert begun.step == 8
    (told,) = caplog.messages
    assert words in told
    assert "step-000000012" in told
    if damage in ("one bit", "no marker"):  # its place is taken by one that is whole
        train_plain(copied, batches)
        assert _left(copied) == _left(undisturbed)


def test_where_all_are_damaged_a_member_begins_anew(copied, batches, undisturbed):
    for path in copied.checkpoint_folder.iterdir():
        _flip(path / "part-00000" / "model.safetensors")
    assert checkpoint.newest(copied) is None
    train_plain(copied, batches)
    assert _left(copied) == _left(undisturbed)


def test_a_checkpoint_holds_the_state_at_its_step(stopped, batches, small_base):
    """Every tensor, against an engine that has trained so far without one."""
    begun = checkpoint.newest(stopped)
    assert begun is not None
    encoder = member.load(stopped, "cpu")
    engine = PlainEngine(batch_encoder(encoder, stopped.train), stopped.train)
    feed = local_feed(batches[: begun.step], TokenStore(Path(stopped.tokens)), stopped.draw)
    train(engine, feed, LoopSettings("m", stopped.train, stopped.steps, stopped.seed), lambda _: None)
    assert begun.meta["counters"] == {"updates": begun.step}
    frozen = {"pooler.dense.weight", "pooler.dense.bias"}
    assert set(engine.state.names) == {n for n, _ in encoder.backbone.named_parameters()} - frozen
    for kind in KINDS:
        assert len(begun.names(kind)) == len(engine.state.names)
        for name in engine.state.names:
            assert torch.equal(begun.read(f"{kind}:{name}"), engine.state.read(kind, name)), (kind, name)


def test_no_more_checkpoints_than_asked_for_are_on_the_disk(make_task, batches, tmp_path):
    task = make_task(tmp_path)
    task = replace(task, checkpoints=Checkpoints(every=1, keep=3))
    seen = []

    class Watched(list[Batch]):
        def __getitem__(self, step: Any) -> Any:
            found = [path.name for path in task.checkpoint_folder.glob("*")]
            seen.append((sum(name.startswith("step-") for name in found), len(found)))
            return super().__getitem__(step)

    train_plain(task, Watched(batches))
    assert max(whole for whole, _ in seen) in (3, 4)  # the oldest goes when the newest has come
    assert max(entries for _, entries in seen) <= 5


def test_steps_go_on_while_a_checkpoint_is_written(make_task, batches, stopped, tmp_path, monkeypatch):
    """The thread that writes the state at step 4 waits until step 6 is over; it writes what was there at step 4."""
    task, events, over = make_task(tmp_path), [], threading.Event()
    write = checkpoint.write_weights

    def slow(shapes: Any, tensors: Any, directory: Path) -> None:
        assert over.wait(60), "the next step waits for the checkpoint"
        write(shapes, tensors, directory)
        events.append("written")

    class Noted(StepLog):
        def __call__(self, record: Any) -> None:
            super().__call__(record)
            events.append(record.step)
            if record.step == 6:
                over.set()

    monkeypatch.setattr(checkpoint, "write_weights", slow)
    monkeypatch.setattr(member, "StepLog", Noted)
    with pytest.raises(Stop):
        train_plain(task, Interrupted(batches, 7))
    _settle(task)
    assert events[:7] == list(range(7))
    assert events[-1] == "written"
    begun = checkpoint.newest(task)
    assert begun is not None
    assert begun.step == EVERY
    monkeypatch.undo()
    train_plain(task, batches)


def test_a_full_disk_is_told_of_and_costs_no_checkpoint_that_is_whole(copied, batches, undisturbed, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_weights", full)
        with pytest.raises(BoomError, match=r"member-3: no checkpoint .* No space left on device.*Make room") as told:
            train_plain(copied, batches)
    assert str(copied.checkpoint_folder) in str(told.value)
    begun = checkpoint.newest(copied)
    assert begun is not None
    assert begun.step == 12
    train_plain(copied, batches)
    assert _left(copied) == _left(undisturbed)


@given(st.integers(1, 300), st.floats(0.5, 0.9999) | st.none(), st.integers(2, 9) | st.none(), st.integers(1, 30))
def test_factors_of_averages_by_their_definition(steps, ema, last, every):
    found = factors(Averages(ema=ema, last=last, every=every), steps)
    looks = [done for done in range(1, steps + 1) if (steps - done) % every == 0]
    assert set(found) == ({"ema"} if ema else set()) | ({f"last{last}"} if last else set())
    for name, by_step in found.items():
        assert sum(by_step.values()) == pytest.approx(1, abs=1e-12)
        assert set(by_step) <= set(looks)
        value = np.random.default_rng(steps).normal(size=steps + 1)
        if name == "ema":  # as a recursion, without a share of the start
            running = mass = 0.0
            for done in looks:
                running, mass = running * ema**every + value[done], mass * ema**every + 1
            expected = running / mass
        else:
            expected = value[looks[-last:]].mean()
        average = sum(factor * value[done] for done, factor in by_step.items())
        assert average == pytest.approx(expected, abs=1e-5 * abs(value).max())


def test_averages_are_sums_of_looks_at_the_weights(undisturbed, batches):
    """Against all weights of all steps, in float64; the artifacts hold the same."""
    from safetensors.torch import load_file

    encoder = member.load(undisturbed, "cpu")
    engine = PlainEngine(batch_encoder(encoder, TRAIN), TRAIN)
    averages = RunningAverages(AVERAGES, len(batches), engine)
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def after_step(record: Any) -> None:
        averages(record.step)
        weights[record.step + 1] = {name: tensor.double().clone() for name, tensor in engine.tensors()}

    feed = local_feed(batches, TokenStore(Path(undisturbed.tokens)), undisturbed.draw)
    train(engine, feed, LoopSettings("m", TRAIN, len(batches), undisturbed.seed), after_step)
    for label, key in average_keys(undisturbed.key, AVERAGES).items():
        stored = load_file(Ledger(undisturbed.root).path(key) / "model.safetensors")
        assert set(stored) == set(weights[1])
        for name, tensor in stored.items():
            expected = sum(factor * weights[done][name] for done, factor in averages.factors[label].items())
            assert torch.equal(tensor, averages.tensors(label)[name])
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)


def test_checkpoints_are_no_part_of_any_result(make_task, batches, undisturbed, tmp_path):
    task = replace(make_task(tmp_path), checkpoints=Checkpoints(every=10**6, keep=1))
    train_plain(task, batches)
    assert _left(task) == _left(undisturbed)
