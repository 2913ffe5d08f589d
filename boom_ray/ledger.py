"""The ledger: owner of a run directory and the only writer of artifacts.

An artifact is a directory ``KIND/LABEL-IDENTITY`` whose identity is derived from what made it (settings and the
identities of its inputs), so that the same recipe finds it again and a changed one does not. It is written to a
temporary sibling, every file is checksummed, ``manifest.json`` is written last, and one rename makes it exist: a
kill at any moment leaves the old state or the new one. Temporary siblings are never read. In a bucket, which knows no
rename, the marker that is uploaded last makes it exist; :mod:`boom_ray.stores.mirrors` keeps what a node needs there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.paths import is_safe
from boom_ray.redact import redact_known, without_secrets
from boom_ray.stores import mirrors
from boom_ray.stores.disks import checksums, file_sha256, sync_directory, write_durably, write_told
from boom_ray.stores.objects import MANIFEST, PUBLISHED_MANIFEST, RUN, SUCCESS, TEMPORARY, ObjectSlot
from boom_ray.stores.slots import FileSlot, Slot

PUBLISHED = "published"  # the one kind that people take away: it brings its manifest and a marker for other tools


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity(value: Any) -> str:
    """16 hexadecimal digits that name ``value`` (anything JSON can hold)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Key:
    """The place of an artifact: ``kind/label-identity``. Only kind and identity name it; the label is for people."""

    kind: str
    label: str
    identity: str

    def __post_init__(self) -> None:
        if not (is_safe(self.kind) and is_safe(self.name)) or "/" in self.kind + self.name:
            raise BoomError(f"{self.kind}/{self.name} is no place in a run directory. Refused.")

    @property
    def name(self) -> str:
        return f"{self.label}-{self.identity}"

    @property
    def manifest(self) -> str:
        return PUBLISHED_MANIFEST if self.kind == PUBLISHED else MANIFEST

    @property
    def marker(self) -> str:
        """The file written last."""
        return SUCCESS if self.kind == PUBLISHED else MANIFEST


@dataclass
class Stage:
    """An artifact that is being written. ``path`` is its temporary directory; ``meta`` goes into the manifest."""

    path: Path
    meta: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """A run directory.

    Attributes:
        root: where its files lie on this node: the directory, or the mirror of one in a bucket (``store``).
        guard: called before anything is committed; raises where this process may not (:mod:`boom_ray.cluster.lease`).
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = mirrors.place(root).absolute()  # workers may run in another directory
        found = mirrors.locate(self.root)
        self.store = found[0].store if found else None
        self.guard: Callable[[], None] = _anybody

    def __reduce__(self) -> tuple[Any, ...]:
        return Ledger, (self.root,)  # the lease stays with the driver

    def __str__(self) -> str:
        """The run directory as a person writes it."""
        return self.store.shown() if self.store else str(self.root)

    @classmethod
    def open(cls, root: str | os.PathLike[str], name: str) -> Ledger:
        """Open or create the run directory of the recipe called ``name``.

        Raises:
            BoomError: the directory belongs to another recipe, or holds something that is no run.
        """
        ledger = cls(mirrors.opened(root))
        marker = ledger.root / RUN
        if marker.is_file():
            owner = json.loads(marker.read_text())["recipe"]
            if owner != name:
                raise BoomError(
                    f"run directory {ledger} belongs to recipe '{owner}', not to '{name}'. "
                    f"Give another --run-dir, or rename the recipe if it continues that run."
                )
        elif ledger.root.exists() and not _is_empty(ledger.root):
            raise BoomError(f"{ledger} exists and is not a run directory of boom_ray. Give another --run-dir.")
        else:
            with write_told(ledger.root):
                ledger.root.mkdir(parents=True, exist_ok=True)
            ledger.write_text(RUN, json.dumps({"recipe": name, "created": time.time()}) + "\n")
        return ledger

    def path(self, key: Key) -> Path:
        """Where an artifact lies, or will lie, on this node; what is in a bucket is brought."""
        place = self._place(key)
        return mirrors.fetch(place) if self.store and self.has(key) else place

    def _place(self, key: Key) -> Path:
        return self.root / key.kind / key.name

    def has(self, key: Key) -> bool:
        if self.store:
            return self.store.has(f"{key.kind}/{key.name}/{key.marker}")
        return (self._place(key) / key.marker).is_file()

    def manifest(self, key: Key) -> dict[str, Any]:
        """The committed artifact's manifest.

        Raises:
            BoomError: there is no such artifact, or its manifest is damaged.
        """
        file = self._place(key) / key.manifest
        content = self._manifest_bytes(file) if self.store is None or self.has(key) else None
        if content is None:
            raise BoomError(f"{self._place(key)} has not been made yet. `boom-ray run` makes what is missing.")
        try:
            return json.loads(content)
        except ValueError:
            raise BoomError(f"{file} is damaged. Delete {self._place(key)}; the next run makes it again.") from None

    def manifests(self, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Directory (not brought from a bucket) and manifest of every committed artifact of a kind, sorted by name.
        Damaged ones are left out."""
        name, marker = (PUBLISHED_MANIFEST, SUCCESS) if kind == PUBLISHED else (MANIFEST, MANIFEST)
        if self.store:
            names = self.store.sizes(kind)
            folders = sorted(self.root / Path(n).parent for n in names if n.count("/") == 2 and Path(n).name == marker)
        else:
            folders = sorted(file.parent for file in (self.root / kind).glob(f"[!.]*/{marker}"))
        for folder in folders:
            with suppress(ValueError):
                yield folder, json.loads(self._manifest_bytes(folder / name) or b"")

    def _manifest_bytes(self, file: Path) -> bytes | None:
        if self.store and not file.is_file():
            return self.store.manifest(file.relative_to(self.root).as_posix())
        return file.read_bytes() if file.is_file() else None

    def read_json(self, key: Key, file: str) -> Any:
        return json.loads((self.path(key) / file).read_text())

    def verify(self, key: Key) -> None:
        """Compare every file of an artifact with its checksum.

        Raises:
            BoomError: names the first file that is missing or differs.
        """
        place = self.path(key)
        for name, entry in self.manifest(key)["files"].items():
            file = place / name
            there = is_safe(name) and file.is_file() and not file.is_symlink()
            if not there or file_sha256(file) != entry["sha256"]:
                raise BoomError(f"{file} is damaged or missing. Delete {place}; the next run makes it again.")

    @contextmanager
    def stage(self, key: Key, inputs: Mapping[str, Any] | None = None) -> Iterator[Stage]:
        """Write an artifact: fill ``stage.path``; leaving the block without an exception commits it.

        Raises:
            DiskFull: it does not fit.
        """
        parent = self.root / key.kind
        stage = Stage(parent / f"{TEMPORARY}{key.name}-{uuid.uuid4().hex[:8]}")
        started = time.time()
        try:
            with write_told(stage.path):
                stage.path.mkdir(parents=True)
                yield stage
                self._commit(key, stage, dict(inputs or {}), started)
        except BaseException:
            shutil.rmtree(stage.path, ignore_errors=True)
            raise

    def _commit(self, key: Key, stage: Stage, inputs: dict[str, Any], started: float) -> None:
        files = checksums(stage.path)
        manifest = {
            "kind": key.kind,
            "label": key.label,
            "identity": key.identity,
            "inputs": without_secrets(inputs),
            "files": files,
            "bytes": sum(entry["bytes"] for entry in files.values()),
            "started": started,
            "finished": time.time(),
            "meta": without_secrets(stage.meta),
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        write_durably(stage.path / key.manifest, text)
        if key.marker != key.manifest:
            write_durably(stage.path / key.marker, hashlib.sha256(text.encode()).hexdigest() + "\n")
        self.guard()
        target = self._place(key)
        if self.store:
            mirrors.forget(stage.path)  # what workers on other nodes have sent
            if self.has(key):
                shutil.rmtree(stage.path)
                return
            self.store.publish(stage.path, f"{key.kind}/{key.name}", key.marker)
            shutil.rmtree(target, ignore_errors=True)  # what was brought of an earlier one
        if target.exists():  # a damaged artifact that somebody deleted in part, or a second writer that was faster
            if self.has(key):
                shutil.rmtree(stage.path)
                return
            shutil.rmtree(target)
        try:
            os.rename(stage.path, target)
        except OSError:
            if not self.has(key):
                raise
            shutil.rmtree(stage.path)  # a second writer committed between the look above and the rename
        sync_directory(target.parent)

    def scratch(self, *parts: str) -> Path:
        """A directory for logs, metrics and finished pieces: never an artifact, safe to delete between runs. What a
        bucket has of it is brought; :func:`boom_ray.stores.mirrors.send` puts new pieces there."""
        path = self.root.joinpath("scratch", *parts)
        path.mkdir(parents=True, exist_ok=True)
        return mirrors.fetch(path) if parts else path

    def write_text(self, name: str, text: str) -> Path:
        """Replace one small file of the run directory atomically (resolved recipe, report, frozen placement)."""
        self.guard()
        target, text = self.root / name, redact_known(text)
        temporary = target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")
        try:
            with write_told(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_durably(temporary, text)
                if self.store:
                    self.store.write(name, text.encode())
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def children(self, name: str) -> set[str]:
        """What lies in a folder, here or in the bucket."""
        here = {entry.name for entry in self.root.joinpath(name).glob("*")}
        there = self.store.sizes(name) if self.store else {}
        return here | {entry.removeprefix(f"{name}/").partition("/")[0] for entry in there}

    def drop(self, name: str) -> None:
        """Delete a small file or a folder of scratch, if it is there."""
        target = self.root / name
        mirrors.forget(target)
        shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)

    def slot(self, name: str) -> Slot:
        """A small file that one writer at a time claims."""
        return ObjectSlot(self.store, name) if self.store else FileSlot(self.root / name)

    def sweep(self) -> None:
        """Remove temporary siblings that a killed run left behind. Call it only while no other run is writing."""
        if self.store:
            self.store.sweep()
        below = self.root.rglob if self.store else self.root.glob  # of a mirror also files that were half brought
        inside = self.root.joinpath("scratch").rglob(f"{TEMPORARY}*")
        for leftover in [*below(f"{TEMPORARY}*"), *self.root.glob(f"*/{TEMPORARY}*"), *inside]:
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _anybody() -> None:
    """The guard of a ledger that no lease protects: a reader's, or a worker's, whose driver holds it."""


def _is_empty(path: Path) -> bool:
    """A directory that holds nothing but what a kill left while the run directory was made."""
    return path.is_dir() and all(entry.name.startswith(TEMPORARY) for entry in path.iterdir())
