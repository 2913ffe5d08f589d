"""For test_node_faults.py: a driver that trains two members of one worker each on the cluster that RAY_ADDRESS names.

    python members_driver.py FOLDER

FOLDER holds ``base`` and ``tokens``; the run lies in FOLDER/run. It takes ``drain SOCKET SECONDS`` on its standard
input: the node whose raylet has that socket is to be taken back, as a cloud says of a spot machine. Prints what the
ensemble says.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.cluster.session import ray_session
from boom_ray.config import Checkpoints, Train
from boom_ray.data.schedule import Batch, batch_shuffle
from boom_ray.data.tokens import TokenStore
from boom_ray.ledger import Key, Ledger
from boom_ray.resources import Bundle, Placement
from boom_ray.train.member import MemberTask

STEPS = 1500
EVERY = 100
HANG_SECONDS = 30.0
PREEMPTION = 2  # DRAIN_NODE_REASON_PREEMPTION


def work_in(folder: Path, name: str) -> tuple[MemberTask, Sequence[Batch]]:
    train = Train(batch_size=8, learning_rate=1e-3, hard_negatives=1, chunk_tokens=256)
    store = TokenStore(folder / "tokens")
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    batches: list[Batch] = []
    while len(batches) < STEPS:
        batches += batch_shuffle(bag, dict.fromkeys(bag, train.batch_size), 2, 5, len(batches)).batches
    key = Key("members", name, f"{len(name):016d}")
    paths = (str(folder / "base"), str(folder / "tokens"))
    task = MemberTask(name, str(folder / "run"), key, *paths, train, STEPS, 3, 1)
    return dataclasses.replace(task, checkpoints=Checkpoints(every=EVERY)), batches[:STEPS]


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def obey() -> None:
    import ray
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    for line in sys.stdin:
        _, socket, seconds = line.split()
        node = next(n for n in ray.nodes() if n["Alive"] and n["RayletSocketName"] == socket)
        deadline = int(1000 * (time.time() + float(seconds)))
        accepted, why = internal_kv_get_gcs_client().drain_node(node["NodeID"], PREEMPTION, "a test", deadline)
        tell(drained=bool(accepted), why=why)


def main(folder: Path) -> None:
    from boom_ray.train.ensemble import Room, Watcher, train_ensemble

    ledger = Ledger.open(folder / "run", "r")
    work = {name: work_in(folder, name) for name in ("left", "right")}
    placements = [Placement(name, 1, 0.0, 1.0) for name in work]
    with ray_session():
        threading.Thread(target=obey, daemon=True).start()
        room = Room(Bundle(1, 0.0), slots=2, hang_seconds=HANG_SECONDS)
        failed = train_ensemble(ledger, work, placements, room, Watcher(say=lambda line: tell(said=line)))
    tell(failed={name: str(failure) for name, failure in failed.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
