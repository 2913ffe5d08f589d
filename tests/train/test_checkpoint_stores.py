"""Checkpoints of a run in a bucket: a member goes on from them on a node that has seen none of it."""

from __future__ import annotations

import pytest
from test_checkpoint import EVERY, Interrupted, Stop, _left, _settle, batches, make_task, undisturbed  # noqa: F401

from boom_ray.ledger import Ledger
from boom_ray.stores import mirrors
from boom_ray.stores.objects import Store
from boom_ray.train import checkpoint
from boom_ray.train.member import train_plain


def test_a_member_goes_on_from_a_bucket_on_another_node(
    make_task,  # noqa: F811
    batches,  # noqa: F811
    undisturbed,  # noqa: F811
    bucket,
    tmp_path,
    monkeypatch,
):
    def task_on(node: str):
        monkeypatch.setenv("BOOM_RAY_MIRRORS", str(tmp_path / node))
        mirrors._mirror.cache_clear()
        return make_task(Ledger.open(bucket.uri("run"), "r").root)

    store, begun = Store(bucket.uri("run")), task_on("one")
    with pytest.raises(Stop):
        train_plain(begun, Interrupted(batches, 3 * EVERY + 2))
    _settle(begun)
    folder = f"scratch/members/{begun.key.name}/checkpoints"
    whole = sorted({name.split("/")[4] for name in store.sizes(folder) if name.endswith("/checkpoint.json")})
    assert whole == [f"step-{2 * EVERY:09d}", f"step-{3 * EVERY:09d}"]
    newest = f"{folder}/{whole[-1]}"
    weights = next(name for name in store.sizes(newest) if name.endswith(".safetensors"))
    content = store.read(weights)
    assert content is not None
    store.write(weights, content[:-1] + bytes([content[-1] ^ 1]))  # bits may turn there, too: then the one before
    task = task_on("two")
    found = checkpoint.newest(task)
    assert found is not None
    assert found.step == 2 * EVERY
    train_plain(task, Interrupted(batches))
    assert _left(task) == _left(undisturbed)
    assert not store.sizes(folder)
    assert Ledger.open(bucket.uri("run"), "r").has(task.key)
