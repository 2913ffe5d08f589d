"""An ensemble on a cluster: as many members at once as fit, a freed worker taken at once, failures that stay alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boom_ray.config import Checkpoints, Train
from boom_ray.data.schedule import Batch, batch_shuffle
from boom_ray.ledger import Key, Ledger
from boom_ray.resources import Bundle, Placement

pytestmark = pytest.mark.long  # four nodes and three members are some forty processes of Ray
TRAIN = Train(batch_size=14, learning_rate=1e-3, hard_negatives=1, chunk_tokens=256)
ALONE = Bundle(1, 0.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and three nodes of one CPU each, as processes of this machine."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(3):
            nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
        nodes.wait_for_nodes()
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def member(small_base, small_tokens, tmp_path) -> Callable[..., tuple[Any, Sequence[Batch]]]:
    """``member("a", steps)``: its task and batches, in the ledger below ``tmp_path``."""
    from boom_ray.data.tokens import TokenStore
    from boom_ray.train.member import MemberTask

    store = TokenStore(small_tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    ledger = Ledger.open(tmp_path / "run", "r")

    def make(name: str, steps: int, train: Train = TRAIN) -> tuple[Any, Sequence[Batch]]:
        batches: list[Batch] = []
        while len(batches) < steps:
            batches += batch_shuffle(bag, dict.fromkeys(bag, train.batch_size), 2, 5, len(batches)).batches
        key = Key("members", name, f"{len(name):016d}")
        paths = (str(small_base()), str(small_tokens))
        task = MemberTask(name, str(ledger.root), key, *paths, train, steps, 3, 1)
        return replace(task, checkpoints=Checkpoints(every=50)), batches[:steps]

    return make


@contextmanager
def gangs() -> Iterator[list[tuple[float, frozenset[str]]]]:
    """Which placement groups hold their bundles, each time that this changes; filled while the block runs."""
    from ray.util import placement_group_table

    seen: list[tuple[float, frozenset[str]]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            table = placement_group_table().values()
            held = frozenset(g["placement_group_id"] for g in table if g["state"] == "CREATED")
            if not seen or seen[-1][1] != held:
                seen.append((time.monotonic(), held))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_three_members_train_at_once_and_a_freed_worker_is_taken_while_the_others_train(cluster, member, tmp_path):
    """Four members of one worker and one of two on three nodes of one; the first fails for good and disturbs nobody."""
    from boom_ray.train.ensemble import Room, Watcher, train_ensemble

    ledger = Ledger.open(tmp_path / "run", "r")
    bad = TRAIN.model_copy(update={"learning_rate": 1e30})
    work = {"bad": member("bad", 900, bad), **{name: member(name, 900) for name in ("first", "second", "third")}}
    work["wide"] = member("wide", 60)
    placements = [Placement(name, 2 if name == "wide" else 1, 0.0, 1.0) for name in work]
    said: list[str] = []
    with gangs() as seen:
        called = time.monotonic()
        failed = train_ensemble(ledger, work, placements, Room(ALONE), Watcher(say=said.append))
    assert {name: failure.kind for name, failure in failed.items()} == {"bad": "mistake"}
    assert "dataset" in failed["bad"].reason
    assert "loss" in failed["bad"].reason
    assert [line.split()[0] for line in said] == ["bad"]
    metas = {name: ledger.manifest(work[name][0].key)["meta"] for name in work if name != "bad"}
    assert {name: meta["width"] for name, meta in metas.items()} == {"first": 1, "second": 1, "third": 1, "wide": 2}
    begun = max(metas[name]["started"] for name in ("first", "second", "third"))
    assert begun < min(metas[name]["finished"] for name in ("first", "second", "third")), "not three at the same time"
    # the bundle that `bad` left is held by another gang before any other gang lets go of its own
    full = next(i for i, (_, held) in enumerate(seen) if len(held) == 3)
    freed = next(i for i in range(full, len(seen)) if len(seen[i][1]) < 3)
    taken = next(i for i in range(freed, len(seen)) if len(seen[i][1]) == 3)
    took, first = seen[taken][0] - seen[freed][0], seen[full][0] - called
    print(f"a freed bundle was taken after {took:.1f} s; the first three gangs took {first:.1f} s")
    assert len(seen[freed][1]) == 2
    assert seen[freed][1] < seen[taken][1]
    assert took <= max(5.0, first / 2), "five seconds; on a machine that starts processes slowly, in proportion"
