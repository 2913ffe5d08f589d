"""For test_train_faults.py: a member is killed at one write boundary after another, and goes on each time.

    python checkpoint_kills.py FOLDER

FOLDER holds ``base`` and ``tokens``. A boundary is the moment before a file is made, opened for writing, written,
flushed, renamed or deleted, or a folder made or deleted, where a member's step log and checkpoints lie. The
process imports once and forks: a child trains until the boundary of its number and kills itself there, another goes
on. Prints for each boundary ``[what was about to happen, step of the newest checkpoint then, whether the bytes are
right in the end]``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boom_ray.config import Checkpoints, Lora, Train
from boom_ray.data.schedule import Batch, batch_shuffle
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.ledger import Key, Ledger
from boom_ray.train import checkpoint
from boom_ray.train.board import Board
from boom_ray.train.lora import adapt
from boom_ray.train.member import MemberTask, train_plain

EVERY, STEPS = 2, 5
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
_CALLS = ("fsync", "pwrite", "ftruncate", "write")


class Boundaries:
    """Counts the boundaries of this process, and kills it before number ``deadly``."""

    def __init__(self, root: Path, deadly: int | None = None) -> None:
        self._watched = str(root / "scratch" / "members")
        self._deadly, self._told = deadly, root.with_suffix(".boundaries")
        self._lock = threading.Lock()
        self.count = 0
        sys.addaudithook(self._audited)
        for name in _CALLS:
            setattr(os, name, self._before(getattr(os, name), name))

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & _WRITING:
            self._meet(f"open {arguments[0]}", arguments[0])
        elif event in _EVENTS:
            inside_a_folder = any(isinstance(a, int) and a > 0 for a in arguments[1:]) and event != "os.mkdir"
            self._meet(f"{event} {arguments[0]}", self._watched if inside_a_folder else str(arguments[0]))

    def _before(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def called(descriptor: int, *arguments: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self._meet(f"{name} {path}", path)
            return call(descriptor, *arguments)

        return called

    def _meet(self, what: str, path: str) -> None:
        if not path.startswith(self._watched):
            return
        with self._lock:
            if self.count == self._deadly:
                self._told.write_text(what)
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def batches(tokens: Path) -> list[Batch]:
    store = TokenStore(tokens)
    bag = {d["name"]: np.flatnonzero(store.dataset == i) for i, d in enumerate(store.datasets)}
    return list(batch_shuffle(bag, dict.fromkeys(bag, 8), 2, 5, 0).batches)[:STEPS]


def task_in(folder: Path, name: str) -> MemberTask:
    lora = Lora(targets=("query",))  # few tensors, so few boundaries
    train = Train(batch_size=8, learning_rate=1e-2, hard_negatives=1, chunk_tokens=256, lora=lora)
    key = Key("members", "member-0", "0" * 16)
    paths = (str(folder / "base"), str(folder / "tokens"))
    task = MemberTask("member-0", str(folder / name), key, *paths, train, STEPS, 3, 1)
    return dataclasses.replace(task, checkpoints=Checkpoints(every=EVERY, keep=1))


def forked(work: Callable[[], None]) -> int:
    """The status of a child that does ``work`` and nothing else."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def import_all(task: MemberTask) -> None:
    """What a run imports on its way, once for all children; without gradients, after which torch forbids forks."""
    assert task.train.lora is not None
    adapt(Encoder.load(task.base, device="cpu").backbone, task.train.lora, 0)
    Board(task.board).close()


def left(task: MemberTask) -> tuple[Any, ...]:
    """All committed files by checksum, and the rows of every step."""
    ledger = Ledger(task.root)
    manifests = dict(sorted((m["label"], m["files"]) for _, m in ledger.manifests("members")))
    lines = [json.loads(line) for line in task.log_file.read_text().splitlines()[1:]]
    return manifests, [(line["step"], line["digest"], line["loss"]) for line in lines]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    plan = batches(folder / "tokens")

    def train(task: MemberTask, deadly: int | None = None) -> None:
        boundaries = Boundaries(Path(task.root), deadly)
        train_plain(task, plan)
        (folder / "count").write_text(str(boundaries.count))

    undisturbed = task_in(folder, "undisturbed")
    import_all(undisturbed)
    assert forked(lambda: train(undisturbed)) == 0
    expected, count = left(undisturbed), int((folder / "count").read_text())
    assert len(expected[0]) == 1
    for number in range(count):
        task = task_in(folder, f"run-{number}")
        status = forked(lambda: train(task, number))  # noqa: B023  (called before the next turn)
        assert status == signal.SIGKILL, (number, status)
        found = checkpoint.newest(task)
        assert forked(lambda: train_plain(task, plan)) == 0, number  # noqa: B023
        gone = not list(Path(task.root).rglob("step-*"))
        what = (folder / f"run-{number}.boundaries").read_text().replace(str(folder / f"run-{number}"), "")
        print(json.dumps([what, found.step if found else 0, gone and left(task) == expected]), flush=True)
        shutil.rmtree(task.root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
