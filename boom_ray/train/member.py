"""One member's training as a value: everything a worker needs, and what it leaves behind.

The same task trains over DeepSpeed inside Ray Train (:mod:`boom_ray.train.worker`) or on plain torch in one process
(:func:`train_plain`), which is how a built base is warmed up and how the loop is profiled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from boom_ray.config import Train
from boom_ray.data.batches import DrawSettings, TrainBatch, local_feed
from boom_ray.data.schedule import Batch
from boom_ray.data.staging import stage
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.ledger import Key, Ledger
from boom_ray.train.board import Board
from boom_ray.train.cache import batch_encoder
from boom_ray.train.engine import PlainEngine, freeze_unused
from boom_ray.train.loop import Engine, LoopSettings, train
from boom_ray.train.meter import StepRecord, summarise
from boom_ray.train.weights import write_weights


@dataclass(frozen=True)
class MemberTask:
    """A member to train: its place in the ledger, its inputs (directories), its settings."""

    name: str
    root: str
    key: Key
    base: str
    tokens: str
    train: Train
    steps: int
    seed: int
    threads: int
    meta: dict[str, Any] = field(default_factory=dict)
    staging: str | None = None

    @property
    def draw(self) -> DrawSettings:
        return DrawSettings(self.seed, self.train.hard_negatives)

    @property
    def log_file(self) -> Path:
        return Path(self.root) / "scratch" / "members" / f"{self.key.name}.jsonl"

    @property
    def board(self) -> Path:
        """Folder of the member's TensorBoard files."""
        return Path(self.root) / "scratch" / "tensorboard" / self.key.name


def open_store(task: MemberTask) -> TokenStore:
    """The corpus' tokens; from this node's own disk where the recipe asks for that."""
    return TokenStore(stage(Path(task.tokens), Path(task.staging) if task.staging else None))


def load(task: MemberTask, device: str) -> Encoder:
    """The base, ready to be trained."""
    torch.set_num_threads(task.threads)
    encoder = Encoder.load(task.base, device=device)
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    if task.train.gradient_checkpointing:
        encoder.backbone.gradient_checkpointing_enable()
    return encoder


def run(task: MemberTask, engine: Engine, batches: Iterable[TrainBatch], log: StepLog) -> None:
    train(engine, batches, LoopSettings(task.name, task.train, task.steps, task.seed), log)


def commit(task: MemberTask, encoder: Encoder, engine: Engine, log: StepLog, width: int) -> None:
    """Write the trained member into the ledger; ranks other than the first call :func:`assist` meanwhile."""
    with Ledger(task.root).stage(task.key, inputs={"base": task.base, "tokens": task.tokens}) as stage:
        encoder.save_description(stage.path)
        write_weights(engine.shapes, engine.tensors(), stage.path)
        stage.meta.update(task.meta, **log.summary(), width=width, threads=task.threads)


def assist(engine: Engine) -> None:
    """Take part in the exchanges of the rank that commits."""
    for _ in engine.tensors():
        pass


def train_plain(task: MemberTask, batches: list[Batch]) -> None:
    """Train on plain torch in this process and commit."""
    with StepLog(task) as log:
        encoder = load(task, "cuda" if torch.cuda.is_available() else "cpu")
        store = open_store(task)
        engine = PlainEngine(batch_encoder(encoder, task.train), task.train)
        run(task, engine, local_feed(batches, store, task.draw), log)
    commit(task, encoder, engine, log, width=1)


class StepLog:
    """Every step of a member as a line of a scratch file, for the live table, and on a TensorBoard; its summary for the
    manifest."""

    def __init__(self, task: MemberTask, write: bool = True) -> None:
        self._task = task
        self._write = write
        self._stream: TextIO | None = None
        self._board: Board | None = None
        self.records: list[StepRecord] = []
        self.started = time.time()

    def __enter__(self) -> StepLog:
        if self._write:
            self._task.log_file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self._task.log_file, "w", encoding="utf-8")
            self._line({"name": self._task.name, "steps": self._task.steps, "started": self.started})
            self._board = Board(self._task.board)
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream and self._board:
            self._stream.close()
            self._board.close()

    def __call__(self, record: StepRecord) -> None:
        self.records.append(record)
        self._line(record.line())
        if self._board:
            self._board(record)

    def _line(self, content: dict[str, Any]) -> None:
        if self._stream:
            self._stream.write(json.dumps(content) + "\n")
            self._stream.flush()

    def summary(self) -> dict[str, Any]:
        """Times of start and end, and what the steps were."""
        return {"started": self.started, "finished": time.time(), **summarise(self.records)}
