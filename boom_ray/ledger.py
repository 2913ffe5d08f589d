"""The ledger: owner of a run directory and the only writer of artifacts.

An artifact is a directory ``KIND/LABEL-IDENTITY`` whose identity is derived from what made it (settings and the
identities of its inputs), so that the same recipe finds it again and a changed one does not. It is written to a
temporary sibling, every file is checksummed, ``manifest.json`` is written last, and one rename makes it exist: a
kill at any moment leaves the old state or the new one. Temporary siblings are never read.
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

MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"
PUBLISHED = "published"  # the one kind that people take away: it brings its manifest and a marker for other tools
PUBLISHED_MANIFEST = "boom_manifest.json"
_TEMPORARY = ".tmp-"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity(value: Any) -> str:
    """16 hexadecimal digits that name ``value`` (anything JSON can hold)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def file_sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Key:
    """The place of an artifact: ``kind/label-identity``. Only kind and identity name it; the label is for people."""

    kind: str
    label: str
    identity: str

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
        guard: called before anything is committed; raises where this process may not (:mod:`boom_ray.lease`).
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()  # workers may run in another directory
        self.guard: Callable[[], None] = _anybody

    @classmethod
    def open(cls, root: str | os.PathLike[str], name: str) -> Ledger:
        """Open or create the run directory of the recipe called ``name``.

        Raises:
            BoomError: the directory belongs to another recipe, or holds something that is no run.
        """
        ledger = cls(root)
        marker = ledger.root / "run.json"
        if marker.is_file():
            owner = json.loads(marker.read_text())["recipe"]
            if owner != name:
                raise BoomError(
                    f"run directory {ledger.root} belongs to recipe '{owner}', not to '{name}'. "
                    f"Give another --run-dir, or rename the recipe if it continues that run."
                )
        elif ledger.root.exists() and not _is_empty(ledger.root):
            raise BoomError(f"{ledger.root} exists and is not a run directory of boom_ray. Give another --run-dir.")
        else:
            ledger.root.mkdir(parents=True, exist_ok=True)
            ledger.write_text("run.json", json.dumps({"recipe": name, "created": time.time()}) + "\n")
        return ledger

    def path(self, key: Key) -> Path:
        return self.root / key.kind / key.name

    def has(self, key: Key) -> bool:
        return (self.path(key) / key.marker).is_file()

    def manifest(self, key: Key) -> dict[str, Any]:
        """The committed artifact's manifest.

        Raises:
            BoomError: there is no such artifact, or its manifest is damaged.
        """
        file = self.path(key) / key.manifest
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            raise BoomError(f"{self.path(key)} has not been made yet. `boom-ray run` makes what is missing.") from None
        except ValueError:
            raise BoomError(f"{file} is damaged. Delete {self.path(key)}; the next run makes it again.") from None

    def manifests(self, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Directory and manifest of every committed artifact of a kind, sorted by name; damaged ones are left out."""
        for file in sorted((self.root / kind).glob(f"[!.]*/{PUBLISHED_MANIFEST if kind == PUBLISHED else MANIFEST}")):
            with suppress(ValueError):
                yield file.parent, json.loads(file.read_text())

    def read_json(self, key: Key, file: str) -> Any:
        return json.loads((self.path(key) / file).read_text())

    def verify(self, key: Key) -> None:
        """Compare every file of an artifact with its checksum.

        Raises:
            BoomError: names the first file that is missing or differs.
        """
        for name, entry in self.manifest(key)["files"].items():
            file = self.path(key) / name
            if not file.is_file() or file_sha256(file) != entry["sha256"]:
                raise BoomError(f"{file} is damaged or missing. Delete {self.path(key)}; the next run makes it again.")

    @contextmanager
    def stage(self, key: Key, inputs: Mapping[str, Any] | None = None) -> Iterator[Stage]:
        """Write an artifact: fill ``stage.path``; leaving the block without an exception commits it."""
        parent = self.root / key.kind
        parent.mkdir(parents=True, exist_ok=True)
        stage = Stage(parent / f"{_TEMPORARY}{key.name}-{uuid.uuid4().hex[:8]}")
        stage.path.mkdir()
        started = time.time()
        try:
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
            "inputs": inputs,
            "files": files,
            "bytes": sum(entry["bytes"] for entry in files.values()),
            "started": started,
            "finished": time.time(),
            "meta": stage.meta,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        write_durably(stage.path / key.manifest, text)
        if key.marker != key.manifest:
            write_durably(stage.path / key.marker, hashlib.sha256(text.encode()).hexdigest() + "\n")
        self.guard()
        target = self.path(key)
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
        """A directory for logs and live metrics: never an artifact, safe to delete between runs."""
        path = self.root.joinpath("scratch", *parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Replace one small file of the run directory atomically (resolved recipe, report, frozen placement)."""
        self.guard()
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")
        write_durably(temporary, text)
        os.replace(temporary, target)
        return target

    def sweep(self) -> None:
        """Remove temporary siblings that a killed run left behind. Call it only while no other run is writing."""
        for leftover in (*self.root.glob(f"{_TEMPORARY}*"), *self.root.glob(f"*/{_TEMPORARY}*")):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _anybody() -> None:
    """The guard of a ledger that no lease protects: a reader's, or a worker's, whose driver holds it."""


def _is_empty(path: Path) -> bool:
    """A directory that holds nothing but what a kill left while the run directory was made."""
    return path.is_dir() and all(entry.name.startswith(_TEMPORARY) for entry in path.iterdir())


def checksums(directory: Path) -> dict[str, dict[str, Any]]:
    """``{relative name: {"sha256", "bytes"}}`` of every file below a directory, sorted; flushes them to disk."""
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        files[file.relative_to(directory).as_posix()] = {"sha256": digest, "bytes": file.stat().st_size}
    return files


def write_durably(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
