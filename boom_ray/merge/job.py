"""A merge as a frozen plan that any process can carry out, tensor by tensor, in a directory that all of them see.

:func:`prepare` lays out the output at its full size, :func:`merge_tensors` writes tensors in place and notes them as
done, :func:`finish` checks that all are. A killed merge goes on at the first tensor that is not noted and ends with the
same bytes, because every tensor's bytes depend on the plan alone. The notes lie beside the output, not in it, until
:func:`forget` ends them: so the output is whole at the very moment it is finished, and a kill later is known, too.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.ledger import identity
from boom_ray.merge.engine import Engine
from boom_ray.merge.files import copy_files
from boom_ray.merge.gram import Grams, gram_of
from boom_ray.merge.layout import Layout, plan_layout, preallocate
from boom_ray.merge.members import Members, open_members
from boom_ray.merge.methods import Setting, tensor_coefficients
from boom_ray.merge.ranks import TensorPass
from boom_ray.merge.registry import check_parameters, get_method
from boom_ray.stores.disks import DiskFull

_PLAN, _LAID_OUT = "plan.json", "laid_out.json"
GROUP = 1 << 23  # elements whose Gram and sum are computed one after the other, while the page cache still holds them


@dataclass(frozen=True)
class MergePlan:
    """Everything that decides the output's bytes, and how to compute them. Picklable; opens nothing by itself.

    Attributes:
        members, base: model directories; directory: where the output is written.
        settings: per tensor, method and weights; or coefficients: per tensor, the vector over members and base.
        out_type: stored type, None: the first member's, tensor by tensor; shard_bytes: size of an output file at most.
        workers, window: see :class:`boom_ray.merge.engine.Engine`; they change no byte.
    """

    members: tuple[Path, ...]
    base: Path | None
    directory: Path
    settings: Mapping[str, Setting] | None = None
    coefficients: Mapping[str, tuple[float, ...]] | None = None
    out_type: str | None = None
    shard_bytes: int = 4 << 30
    workers: int | None = None
    window: int | None = None

    @cached_property
    def opened(self) -> Members:
        return open_members(self.members, self.base)

    @cached_property
    def layout(self) -> Layout:
        rows = {n: (self._type(r[0].dtype), r[0].shape) for n, r in self.opened.rows.items()}
        return plan_layout(rows, self.shard_bytes)

    def _type(self, stored: str) -> str:
        return self.out_type if self.out_type is not None and stored in ("F32", "BF16", "F16") else stored

    @cached_property
    def identity(self) -> str:
        """Names the output's bytes: same identity, same bytes."""
        made = {
            "members": self.opened.fingerprints,
            "settings": {
                n: [s.method, s.weights, dict(s.parameters), s.scale, s.task_vectors]
                for n, s in (self.settings or {}).items()
            },
            "coefficients": {n: list(c) for n, c in (self.coefficients or {}).items()},
            "out": [self.out_type, self.shard_bytes],
        }
        return identity(made)

    @property
    def notes(self) -> Path:
        """A directory beside the output's, while the merge is under way."""
        return notes_of(self.directory)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def prepare(plan: MergePlan) -> list[str]:
    """Make the output directory, or take up one that this plan began; returns the tensors still to merge, in order.

    Raises:
        BoomError: too little room on the disk; the directory holds something else.
    """
    if not _begun(plan):
        if plan.directory.exists() and any(plan.directory.iterdir()):
            raise BoomError(
                f"{plan.directory} is not empty and not of this merge. Delete it or choose another directory."
            )
        plan.directory.mkdir(parents=True, exist_ok=True)
        check_room(plan)
        shutil.rmtree(plan.notes, ignore_errors=True)
        plan.notes.mkdir()
        _write_note(plan.notes / _PLAN, [plan.identity, plan.directory.stat().st_ino])
    if _read_note(plan.notes / _LAID_OUT) != _boot():
        copy_files(plan.members[0], plan.directory)
        preallocate(plan.layout, plan.directory)
        for name in plan.opened.copied:
            _copy_tensor(plan, name)
        _write_note(plan.notes / _LAID_OUT, _boot())
    done = _done(plan.notes)
    return [name for name in plan.opened.floats if name not in done]


def _begun(plan: MergePlan) -> bool:
    return plan.directory.is_dir() and _read_note(plan.notes / _PLAN) == [plan.identity, plan.directory.stat().st_ino]


def notes_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.notes")


def written(directory: Path, target: Path) -> bool:
    """Whether the merge whose scratch was called ``directory`` is what stands at ``target`` now."""
    note = _read_note(notes_of(directory) / _PLAN)
    return target.is_dir() and isinstance(note, list) and note[1:] == [target.stat().st_ino]


def _read_note(file: Path) -> Any:
    """The note, or None where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _write_note(file: Path, note: Any) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(note), encoding="utf-8")
    os.replace(temporary, file)


def check_room(plan: MergePlan) -> None:
    """Raise where the file system of the output cannot hold it."""
    needed = sum(plan.layout.sizes.values()) + (16 << 20)
    free = shutil.disk_usage(plan.directory).free
    if free < needed:
        raise DiskFull(f"{plan.directory}: the merge needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free.")


def _copy_tensor(plan: MergePlan, name: str) -> None:
    tensor = plan.layout.tensors[name]
    with open(plan.directory / tensor.file, "r+b") as stream:
        stream.seek(tensor.offset)
        stream.write(plan.opened.checkpoints[0].view(plan.opened.rows[name][0].name).tobytes())


def merge_tensors(plan: MergePlan, names: Sequence[str], *, durable: bool = True, engine: Engine | None = None) -> None:
    """Compute and write these tensors of a prepared plan. Any process may call it, for any names, in any order.

    Args:
        durable: flush the data before noting tensors as done, so that the note outlives the machine; without it the
            note counts only until this machine's next boot. Processes of several machines use True.

    Raises:
        BoomError: NaN or infinite weights or results; read and write errors.
    """
    notes = plan.notes / f"done-{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    with nullcontext(engine) if engine is not None else Engine(plan.opened, plan.workers, plan.window) as running:
        assert running is not None
        for group in groups(plan, names):
            _write(plan, running, group)
            running.release(running.tasks(group))
            if durable:
                running.flush()
            with open(notes, "a", encoding="utf-8") as stream:
                stream.write("".join(json.dumps([name, None if durable else _boot()]) + "\n" for name in group))


def _write(plan: MergePlan, engine: Engine, names: Sequence[str]) -> None:
    settings = plan.settings or {}
    ranked = [n for n in names if n in settings and get_method(settings[n].method).space == "elementwise"]
    spanned = [n for n in names if n not in ranked]
    if spanned:
        engine.combine(_coefficients(plan, engine, spanned), plan.layout, plan.directory)
    for name in ranked:
        if plan.opened.floats[name] == 0:
            continue
        engine.refuse_nonfinite(name)  # a NaN has no rank and no sign: it would vanish without a word
        chosen, setting = get_method(settings[name].method), settings[name]
        method = chosen.function(np.array(setting.weights), **check_parameters(chosen, setting.parameters))
        results = TensorPass(engine, name, method).write(engine.sink(plan.layout, plan.directory, name), setting.scale)
        engine.check_written(results, plan.layout)


def groups(plan: MergePlan, names: Sequence[str]) -> Iterator[list[str]]:
    """Consecutive tensors that fit the window together, ``GROUP`` elements at most; a larger one is alone."""
    row = sum(4 for _ in plan.opened.checkpoints)
    most = GROUP if plan.window is None else min(GROUP, plan.window // row)
    group: list[str] = []
    filled = 0
    for name in names:
        size = plan.opened.floats[name]
        if group and filled + size > most:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    if group:
        yield group


def _coefficients(plan: MergePlan, engine: Engine, names: Sequence[str]) -> dict[str, np.ndarray]:
    if plan.coefficients is not None:
        return {name: np.array(plan.coefficients[name]) for name in names}
    assert plan.settings is not None
    settings = {name: plan.settings[name] for name in names}
    wanted = [name for name in names if get_method(settings[name].method).gram]
    grams = gram_of(engine, wanted)
    found = {name: _of(settings[name], grams if name in grams.matrices else None, name, plan) for name in names}
    for name in (name for name in names if name not in grams.matrices):  # members that nothing else would read
        engine.refuse_nonfinite(name, [int(k) for k in np.flatnonzero(found[name][: plan.opened.count] == 0)])
    return found


def _of(setting: Setting, grams: Grams | None, name: str, plan: MergePlan) -> np.ndarray:
    matrix = None if grams is None else grams.of(name, setting.in_deltas)
    return tensor_coefficients(setting, matrix, plan.base is not None)


def finish(plan: MergePlan) -> None:
    """Check that every tensor is written.

    Raises:
        BoomError: names tensors that no call of :func:`merge_tensors` has done.
    """
    missing = set(plan.opened.floats) - _done(plan.notes)
    if missing:
        raise BoomError(
            f"{plan.directory}: {len(missing)} tensors are not merged yet, '{min(missing)}' among them. Run it again."
        )


def forget(plan: MergePlan) -> None:
    """Remove the notes of a merge whose output is at its place."""
    shutil.rmtree(plan.notes)


def _done(directory: Path) -> set[str]:
    done = set()
    for notes in directory.glob("done-*"):
        for line in notes.read_text(encoding="utf-8").splitlines():
            try:
                name, boot = json.loads(line)
            except ValueError:  # the last line of a writer that was killed
                continue
            if boot is None or boot == _boot():
                done.add(name)
    return done


def _boot() -> str:
    """This boot of this machine: data that was written but not flushed is still there while it lasts."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def with_directory(plan: MergePlan, directory: Path) -> MergePlan:
    """The same merge into another directory."""
    return replace(plan, directory=directory)
