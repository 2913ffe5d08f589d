"""One member's training as a value: everything a worker needs, and what it leaves behind.

The same task trains over DeepSpeed inside Ray Train (:mod:`boom_ray.train.worker`) or on plain torch in one process
(:func:`train_plain`), which is how a built base is warmed up and how the loop is profiled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from boom_ray.config import Checkpoints, Train
from boom_ray.data.bagging import derive_seed
from boom_ray.data.batches import DrawSettings, TrainBatch, local_feed
from boom_ray.data.schedule import Batch
from boom_ray.data.staging import stage
from boom_ray.data.tokens import TokenStore
from boom_ray.encoder import Encoder
from boom_ray.failures import ASKED, NOBODY, Stopped
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import average_keys, paused_key
from boom_ray.stores.mirrors import fetch, refresh
from boom_ray.train import checkpoint
from boom_ray.train.averages import RunningAverages
from boom_ray.train.board import Board
from boom_ray.train.cache import BatchEncoder, batch_encoder
from boom_ray.train.checkpoint import Checkpointer
from boom_ray.train.engine import PlainEngine, freeze_unused
from boom_ray.train.gather import highest
from boom_ray.train.loop import Engine, LoopSettings, train
from boom_ray.train.lora import adapt
from boom_ray.train.meter import StepRecord, summarise
from boom_ray.train.pulse import beat
from boom_ray.train.weights import write_weights


@dataclass(frozen=True)
class MemberTask:
    """A member to train: its place in the ledger, its inputs (directories), its settings.

    Attributes:
        start: batches that are done: it goes on from the checkpoint of that step; 0 begins.
        stop: batches after which it is stopped, with a checkpoint that it can go on from; None trains to the end.
    """

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
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    start: int = 0
    stop: int | None = None

    @property
    def ends(self) -> int:
        """Batches that it is trained on."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    @property
    def lands(self) -> Key:
        """What is committed: the member, or what it is where it stops."""
        return self.key if self.ends == self.steps else paused_key(self.key, self.ends)

    def due(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Of all its batches those until it ends."""
        return batches if self.ends == self.steps else batches[: self.ends]

    @property
    def draw(self) -> DrawSettings:
        return DrawSettings(self.seed, self.train.hard_negatives)

    @property
    def log_file(self) -> Path:
        return Path(self.root) / "scratch" / "members" / f"{self.key.name}.jsonl"

    @property
    def checkpoint_folder(self) -> Path:
        return Path(self.root) / "scratch" / "members" / self.key.name / "checkpoints"

    @property
    def board(self) -> Path:
        """Folder of the member's TensorBoard files."""
        return Path(self.root) / "scratch" / "tensorboard" / self.key.name


def open_store(task: MemberTask) -> TokenStore:
    """The corpus' tokens; from this node's own disk where the recipe asks for that."""
    return TokenStore(stage(fetch(task.tokens), Path(task.staging) if task.staging else None))


def load(task: MemberTask, device: str) -> Encoder:
    """The base, ready to be trained."""
    torch.set_num_threads(task.threads)
    encoder = Encoder.load(task.base, device=device)
    if task.train.lora is not None:
        adapt(encoder.backbone, task.train.lora, derive_seed(task.seed, "lora"))
    freeze_unused(encoder.backbone, encoder.pooling, encoder.pad_id)
    if task.train.gradient_checkpointing:
        encoder.backbone.gradient_checkpointing_enable()
    return encoder


def begin(task: MemberTask, encoder: Encoder, make: Callable[[BatchEncoder, Train], Engine]) -> Engine:
    """The engine that trains the encoder, made by ``make``, as it was at the step that the task starts from."""
    model = batch_encoder(encoder, task.train)
    if not task.start:
        return make(model, task.train)
    begun = checkpoint.at(task)
    begun.fill(model.backbone)
    engine = make(model, task.train)
    begun.restore(engine.state)
    return engine


def run(
    task: MemberTask,
    engine: Engine,
    batches: Iterable[TrainBatch],
    log: StepLog,
    asked: Callable[[], int] = lambda: NOBODY,
) -> RunningAverages:
    """Train; with a checkpoint now and then, and the averages that the task asks for.

    Args:
        asked: who asks this rank to stop; what one rank is asked counts for all.

    Raises:
        Stopped: ranks were asked to stop, and have: after the same step, with a checkpoint of it.
    """
    averages = RunningAverages(task.train.averages, task.steps, engine)
    if task.start:
        averages.restore(checkpoint.at(task))
    with Checkpointer(task, engine.state, averages) as checkpointer:

        def after_step(record: StepRecord) -> None:
            log(record)
            averages(record.step)
            checkpointer(record.step)
            beat(f"step {record.step}, dataset {record.dataset}")
            who = highest(asked())
            if who and record.step + 1 < task.ends and checkpointer.now(record.step):
                raise Stopped(ASKED[who])

        beat("loading")
        train(engine, batches, LoopSettings(task.name, task.train, task.steps, task.seed), after_step)
        checkpointer.finish()
    return averages


def commit(task: MemberTask, encoder: Encoder, engine: Engine, trained: Trained) -> None:
    """Write the averages and then the trained member into the ledger, and forget its checkpoints; of one that stops
    before its end its weights, and keep them. Ranks other than the first call :func:`assist` meanwhile."""
    ledger, inputs = Ledger(task.root), {"base": task.base, "tokens": task.tokens}
    if task.lands != task.key:
        with ledger.stage(task.lands, inputs=inputs) as stage:
            encoder.save_description(stage.path)
            write_weights(engine.shapes, engine.tensors(), stage.path)
            stage.meta.update(member=task.key.name, step=task.ends, of=task.steps, loss=trained.log.records[-1].loss)
        return
    for label, key in average_keys(task.key, task.train.averages).items():
        if not ledger.has(key):
            with ledger.stage(key, inputs={"member": task.key.identity}) as stage:
                encoder.save_description(stage.path)
                write_weights(engine.shapes, iter(trained.averages.tensors(label).items()), stage.path)
                stage.meta.update(average=label, factors=trained.averages.factors[label])
    with ledger.stage(task.key, inputs=inputs) as stage:
        encoder.save_description(stage.path)
        write_weights(engine.shapes, engine.tensors(), stage.path)
        stage.meta.update(task.meta, **trained.log.summary(), width=trained.width, threads=task.threads)
    checkpoint.clear(task)


def assist(engine: Engine) -> None:
    """Take part in the exchanges of the rank that commits."""
    for _ in engine.tensors():
        pass


def train_plain(task: MemberTask, batches: list[Batch]) -> None:
    """Train on plain torch in this process, from the newest checkpoint on, and commit."""
    found = checkpoint.newest(task)
    task = replace(task, start=found.step if found else 0)
    with StepLog(task) as log:
        encoder = load(task, "cuda" if torch.cuda.is_available() else "cpu")
        store = open_store(task)
        engine = begin(task, encoder, PlainEngine)
        averages = run(task, engine, local_feed(task.due(batches), store, task.draw, task.start), log)
    commit(task, encoder, engine, Trained(log, averages, width=1))


@dataclass(frozen=True)
class Trained:
    """What a run leaves beside the engine's weights."""

    log: StepLog
    averages: RunningAverages
    width: int


class StepLog:
    """Every step of a member as a line of a scratch file, for the live table, and on a TensorBoard; its summary for the
    manifest.

    Attributes:
        idle: seconds in which the member was not trained, between an interruption and the next start.
    """

    def __init__(self, task: MemberTask, write: bool = True) -> None:
        self._task = task
        self._write = write
        self._stream: TextIO | None = None
        self._board: Board | None = None
        self.records: list[StepRecord] = []
        self.started = time.time()
        self.idle = 0.0

    def __enter__(self) -> StepLog:
        if self._write:
            self._task.log_file.parent.mkdir(parents=True, exist_ok=True)
            kept = self._kept() if self._task.start else []
            head = {"name": self._task.name, "steps": self._task.steps, "started": self.started, "idle": self.idle}
            text = "".join(f"{line}\n" for line in [json.dumps(head), *kept])
            Ledger(self._task.root).write_text(str(self._task.log_file.relative_to(self._task.root)), text)
            self._stream = open(self._task.log_file, "a", encoding="utf-8")
            self._board = Board(self._task.board, self._task.start)
        return self

    def _kept(self) -> list[str]:
        """Take over the steps before the first; what an interrupted run logged after its checkpoint is done again."""
        ended = refresh(self._task.log_file).stat().st_mtime
        first, *lines = self._task.log_file.read_text(encoding="utf-8").splitlines()[: 1 + self._task.start]
        head = json.loads(first)
        self.started, self.idle = head["started"], head["idle"] + max(0.0, time.time() - ended)
        self.records = [StepRecord.read(json.loads(line)) for line in lines]
        return lines

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
        times = {"started": self.started, "finished": time.time(), "idle": self.idle}
        return {**times, **summarise(self.records)}
