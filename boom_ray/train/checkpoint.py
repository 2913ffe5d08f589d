"""Checkpoints of a member that trains: copied between two steps, written while the next ones run, whole after a crash.

A checkpoint is a directory ``step-STEP`` of float32 tensors, each of them whole (:mod:`boom_ray.train.state`), so that
another number of ranks can go on from it. Every rank copies the tensors that are its own in turn to host memory, and a
thread writes them below a temporary sibling, flushed and checksummed. When all parts are there the first rank's thread
writes ``checkpoint.json`` and renames the sibling: a kill at any moment leaves the checkpoints that were there, and a
new one at most. Nothing is pickled.

What else a run would have to remember is a function of the step: the order of batches, the learning rate, the draws of
dropout. The step log has at least as many lines as a checkpoint has steps; who goes on cuts it back to these.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from boom_ray.config import BoomError
from boom_ray.stores import mirrors
from boom_ray.stores.disks import checksums, file_sha256, sync_directory, write_durably
from boom_ray.train.gather import agreed_number, highest, rank, world
from boom_ray.train.state import KINDS, State
from boom_ray.train.weights import write_weights

if TYPE_CHECKING:
    from boom_ray.train.averages import RunningAverages
    from boom_ray.train.member import MemberTask

MARKER = "checkpoint.json"
_FORMAT = 1
_TEMPORARY = ".tmp-"
_LOOK = 0.1  # seconds between two looks for the parts of other ranks
_log = logging.getLogger(__name__)


def newest(task: MemberTask) -> Checkpoint | None:
    """The newest checkpoint that ``task`` can go on from, every byte of it compared with its checksum; a damaged one is
    passed over with a warning. Reads no tensor into memory."""
    for path in sorted(_all(task), reverse=True):
        if path > _place(task, task.ends):
            continue  # it was stopped later before
        try:
            return _verified(path, task)
        except BoomError as error:
            _log.warning("%s: checkpoint passed over: %s", task.name, error)
    return None


def at(task: MemberTask) -> Checkpoint:
    """The checkpoint that ``task`` starts from, as :func:`newest` found it.

    Raises:
        BoomError: it is gone.
    """
    return _opened(_place(task, task.start), task)


def clear(task: MemberTask) -> None:
    """Delete all checkpoints of a member that is committed."""
    shutil.rmtree(task.checkpoint_folder, ignore_errors=True)
    mirrors.forget(task.checkpoint_folder)


def due(done: int, steps: int, every: int, accumulation: int) -> bool:
    """Whether a checkpoint is taken after ``done`` of ``steps`` global batches: every ``every`` of them, or as soon
    after as no gradients are on their way to an update of ``accumulation`` batches. The end needs none."""
    at_update = done % accumulation == 0
    return at_update and done < steps and done // every > (done - accumulation) // every


@dataclass(frozen=True)
class Checkpoint:
    """What was written after ``step`` global batches; the batch of that number comes next."""

    path: Path
    step: int
    meta: Mapping[str, Any]

    def fill(self, backbone: torch.nn.Module) -> None:
        """Load the trained weights into a backbone, before an engine is made of it."""
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(self.read(f"weights:{name}"))

    def restore(self, state: State) -> None:
        """Load weights, moments and counts into an engine; all ranks together."""
        for kind, name in product(KINDS, state.names):
            state.write(kind, name, self.read(f"{kind}:{name}"))
        state.count(self.meta["counters"])

    def read(self, name: str) -> torch.Tensor:
        """One tensor, by ``KIND:NAME``.

        Raises:
            BoomError: there is none of that name, or it cannot be read.
        """
        if name not in self._files:
            raise BoomError(f"{self.path} has no tensor {name}: it belongs to another model. Delete it and run again.")
        try:
            with safe_open(self._files[name], framework="pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise BoomError(f"{self._files[name]} cannot be read: {error}. Run again: an older one is used.") from None

    def names(self, kind: str) -> list[str]:
        """Of all tensors of a kind, as :meth:`read` takes them."""
        return [name for name in self._files if name.startswith(f"{kind}:")]

    @cached_property
    def _files(self) -> dict[str, str]:
        """The file that a tensor lies in."""
        found: dict[str, str] = {}
        for file in self.meta["files"]:
            if file.endswith(".safetensors"):
                with safe_open(str(self.path / file), framework="pt") as opened:
                    found.update(dict.fromkeys(opened.keys(), str(self.path / file)))
        return found


class Checkpointer:
    """Takes the checkpoints of one rank: call it with every step's number when its update is made and logged.

    At most one is being written: the next one waits for it, so no more than one copy of the state is in memory.
    """

    def __init__(self, task: MemberTask, state: State, averages: RunningAverages) -> None:
        self._task, self._state, self._averages = task, state, averages
        self._rank, self._world = rank(), world()
        self._attempt = agreed_number()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._taken = task.start
        self._ended = threading.Event()
        if self._rank == 0:
            for leftover in task.checkpoint_folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # other ranks may be dead: their parts are not waited for
        self._pool.shutdown(wait=False)

    def __call__(self, step: int) -> None:
        settings, done = self._task.checkpoints, step + 1
        stops = done == self._task.ends < self._task.steps
        if stops or due(done, self._task.steps, settings.every, self._task.train.accumulation):
            self._begin(done)
        elif self._writing and self._writing.done():
            self.finish()  # a disk that is full is told of at once

    def now(self, step: int) -> bool:
        """Take one of this step and wait until it is whole; all ranks together. False: gradients are on their way to an
        update, so there can be none yet."""
        done = step + 1
        if done % self._task.train.accumulation:
            return False
        if self._taken != done:
            self._begin(done)
        self.finish()
        highest(0)  # the first rank comes when all parts are there
        return True

    def _begin(self, done: int) -> None:
        self.finish()
        self._writing = self._pool.submit(self._write, done, dict(self._own()), self._state.counters())
        self._taken = done

    def finish(self) -> None:
        """Wait for what is being written.

        Raises:
            BoomError: it could not be written.
        """
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except OSError as error:
            raise BoomError(
                f"{self._task.name}: no checkpoint could be written to {self._task.checkpoint_folder}: {error}. Make "
                f"room there and run again; it goes on from the last checkpoint that is whole."
            ) from error

    def _own(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's share of the state as copies in host memory; all ranks look at every tensor together."""
        for number, (kind, name) in enumerate(product(KINDS, self._state.names)):
            value = self._state.read(kind, name)
            if number % self._world == self._rank:
                yield f"{kind}:{name}", value.to("cpu", torch.float32, copy=True)
        yield from self._averages.sums.items()  # of the first rank only; never changed in place

    def _write(self, done: int, own: dict[str, torch.Tensor], counters: dict[str, float]) -> None:
        """This rank's part, and on the first rank the end; runs in the thread."""
        final = _place(self._task, done)
        directory = final.with_name(f"{_TEMPORARY}{final.name}-{self._attempt:x}")
        part = f"part-{self._rank:05d}"
        (directory / part).mkdir(parents=True)
        write_weights({name: tuple(tensor.shape) for name, tensor in own.items()}, iter(own.items()), directory / part)
        files = {f"{part}/{name}": entry for name, entry in checksums(directory / part).items()}
        write_durably(directory / f".{part}.json", json.dumps(files))
        mirrors.upload(directory / part, final / part)
        os.replace(directory / f".{part}.json", directory / f"{part}.json")
        mirrors.send(directory / f"{part}.json")
        if self._rank == 0 and (parts := self._all_parts(directory)):
            with open(self._task.log_file, "rb") as log:
                os.fsync(log.fileno())
            mirrors.send(self._task.log_file)
            meta = {"format": _FORMAT, "identity": self._task.key.identity, "step": done, "counters": counters}
            _seal(directory, {**meta, "width": self._world, "threads": self._task.threads, "files": parts}, final)
            mirrors.send(final / MARKER)
            mirrors.forget(directory)
            self._forget_old()

    def _all_parts(self, directory: Path) -> dict[str, Any]:
        """Checksums of all ranks' files, as soon as they are there; none where training has ended before."""
        files: dict[str, Any] = {}
        for number in range(self._world):
            told = directory / f"part-{number:05d}.json"
            while not mirrors.fetch(told).is_file():
                if self._ended.wait(_LOOK):
                    return {}
            files |= json.loads(told.read_text())
        return files

    def _forget_old(self) -> None:
        for old in sorted(_all(self._task))[: -self._task.checkpoints.keep]:
            mirrors.forget(old / MARKER)  # first: without it there is none
            mirrors.forget(old)
            _remove(old)


def _seal(directory: Path, meta: dict[str, Any], final: Path) -> None:
    """Make a directory of parts a checkpoint."""
    for folder in directory.glob("part-*/"):
        sync_directory(folder)
    write_durably(directory / MARKER, json.dumps(meta, indent=1) + "\n")
    sync_directory(directory)
    if final.exists():  # it was damaged, so this run passed it over
        _remove(final)
    os.rename(directory, final)
    sync_directory(final.parent)


def _all(task: MemberTask) -> set[Path]:
    """The checkpoints of a member; of a run in a bucket those that are whole there, for any node to go on from."""
    if mirrors.locate(task.checkpoint_folder) is None:
        return set(task.checkpoint_folder.glob("step-*"))
    return {path.parent for path in mirrors.listed(task.checkpoint_folder) if path.name == MARKER}


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is half deleted has another name."""
    if not checkpoint.is_dir():
        return
    doomed = checkpoint.with_name(f"{_TEMPORARY}{checkpoint.name}-old-{secrets.token_hex(4)}")
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _place(task: MemberTask, step: int) -> Path:
    return task.checkpoint_folder / f"step-{step:09d}"


def _opened(path: Path, task: MemberTask) -> Checkpoint:
    try:
        meta = json.loads((mirrors.complete(path) / MARKER).read_text())
    except (OSError, ValueError):
        raise BoomError(f"{path} has no readable {MARKER}.") from None
    if (meta["format"], meta["identity"]) != (_FORMAT, task.key.identity):
        raise BoomError(f"{path} is of another member or another version of boom_ray.")
    return Checkpoint(path, meta["step"], meta)


def _verified(path: Path, task: MemberTask) -> Checkpoint:
    found = _opened(path, task)
    for name, entry in found.meta["files"].items():
        if not (path / name).is_file() or file_sha256(path / name) != entry["sha256"]:
            raise BoomError(f"{path / name} is damaged or missing.")
    mirrors.refresh(task.log_file)
    logged = len(task.log_file.read_bytes().splitlines()) - 1 if task.log_file.is_file() else 0
    if logged < found.step:
        raise BoomError(f"{path} is of step {found.step}, but {task.log_file} has {logged} steps only.")
    return found
