"""Real Ray Train workers: one rank and two have the rows of the pure schedule, in its order, step by step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from boom_ray.config import Train
from boom_ray.data.batches import order_digest, row_keys, run_digest
from boom_ray.data.rules import dataset_rules
from boom_ray.data.schedule import Schedule, whole_run
from boom_ray.data.tokens import TokenStore
from boom_ray.ledger import Key, Ledger
from boom_ray.resources import Bundle, Placement
from boom_ray.train.member import MemberTask

TRAIN = Train(batch_size=14, learning_rate=1e-3, hard_negatives=1, chunk_tokens=256, schedule="two_stage")


@pytest.mark.slow
def test_one_and_two_workers_log_the_same_digest_for_every_step(small_base, small_tokens, tmp_path, monkeypatch):
    from boom_ray.cluster.session import ray_session
    from boom_ray.train.ensemble import Room, train_ensemble

    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # never somebody else's cluster
    store = TokenStore(small_tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    batches = whole_run(bag, Schedule("two_stage", 14, 2, dataset_rules(store.datasets)), 5, 1, None).batches
    ledger = Ledger.open(tmp_path / "run", "r")
    widths = {"alone": 1, "pair": 2}
    work = {name: (_task(ledger, name, small_base(), small_tokens, len(batches)), batches) for name in widths}
    with ray_session():
        placements = [Placement(name, width, 0.0, 1.0) for name, width in widths.items()]
        assert train_ensemble(ledger, work, placements, Room(Bundle(1, 0.0), max_concurrent=1)) == {}
    expected = [order_digest(row_keys(store.ids[batch.rows])) for batch in batches]
    for name, width in widths.items():
        task, _ = work[name]
        assert [json.loads(line)["digest"] for line in task.log_file.read_text().splitlines()[1:]] == expected
        meta = ledger.manifest(task.key)["meta"]
        assert (meta["order"], meta["width"], meta["steps"]) == (run_digest(expected), width, len(batches))


def _task(ledger: Ledger, name: str, base: Path, tokens: Path, steps: int) -> MemberTask:
    return MemberTask(
        name, str(ledger.root), Key("members", name, "0" * 16), str(base), str(tokens), TRAIN, steps, 5, 1
    )
