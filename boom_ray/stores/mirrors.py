"""Run directories on ``s3://`` and ``gs://``: every node that works on one has a mirror of it on its own disk.

A mirror is called like its address, so a path below it says where the file lies in the store: any process on any node
brings it with :func:`fetch` and puts it there with :func:`send`; for all other paths both do nothing.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from boom_ray.config import BoomError
from boom_ray.stores.addresses import address_of, in_run, is_address
from boom_ray.stores.disks import write_told
from boom_ray.stores.files import check_room, shown
from boom_ray.stores.objects import (
    CHECKPOINT,
    CHUNK,
    MANIFEST,
    MARKERS,
    PUBLISHED_MANIFEST,
    RUN,
    SUCCESS,
    TEMPORARY,
    Store,
    all_at_once,
)

_LONGEST = 255  # bytes of a file's name
_MIRROR = re.compile(r"(s3|gs|gcs)%3A%2F%2F")
_ARTIFACT = re.compile(r"(?!updates/)[^/]+/[^/]+-[0-9a-f]{16}/")


def place(root: str | os.PathLike[str]) -> Path:
    """Where a run directory's files lie on this node: the path itself, or the mirror of an address.

    Raises:
        BoomError: an address that cannot hold a run.
    """
    text = os.fspath(root)
    if not is_address(text):
        return Path(text)
    name = quote(address_of(text), safe="")
    if len(name) > _LONGEST:
        raise BoomError(f"run directory {shown(text)}: the address is too long. Give a shorter name.")
    return _mirrors() / name


def _mirrors() -> Path:
    given = os.environ.get("BOOM_RAY_MIRRORS")
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "boom_ray" / "mirrors"


def opened(root: str | os.PathLike[str]) -> Path:
    """The local path of a run, or of a model in one, as a user names it: the first look at it.

    Of an address the run's small files are brought up to date, and a model is brought.

    Raises:
        BoomError: no such bucket, or access denied. Infrastructure: the store does not answer.
    """
    text = os.fspath(root)
    run, inside = in_run(text) if is_address(text) else (text, "")
    path = place(run)
    found = locate(path)
    if found is not None:
        found[0].pull()
    return fetch(path / inside) if inside else path


def told(path: Path) -> str:
    """A path for people: of a mirror, the address that it stands for."""
    found = locate(path)
    return found[0].store.shown(found[1]) if found else str(path)


def locate(path: Path) -> tuple[Mirror, str] | None:
    """The mirror that a path lies in, and its name there; None for all other paths."""
    parts = path.parts
    for depth, part in enumerate(parts):
        if _MIRROR.match(part):
            return _mirror(unquote(part), Path(*parts[: depth + 1])), "/".join(parts[depth + 1 :])
    return None


def fetch(path: str | os.PathLike[str]) -> Path:
    """A file or folder, brought here first where it lies in a store and not here; checksums are compared."""
    path = Path(path)
    found = locate(path)
    if found is not None and found[1] and not _whole(path):
        found[0].bring(found[1])
    return path


def complete(path: Path) -> Path:
    """:func:`fetch` of a folder that several nodes have written parts of, and its marker one of them."""
    if found := locate(path):
        found[0].bring(found[1])
    return path


def refresh(path: Path) -> Path:
    """:func:`fetch`, again where the store has more of a file that grows."""
    if found := locate(path):
        found[0].refresh(found[1])
    return path


def send(path: Path) -> None:
    """Put a file, or what a folder has that the store has not, where other nodes find it."""
    found = locate(path)
    if found is None:
        return
    store, name = found[0].store, found[1]
    if path.is_file():
        store.upload([(path, name)])
        return
    there = store.sizes(name)
    files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    whole = {f"{name}/{own}": file for own, file in files.items() if TEMPORARY not in own}
    store.upload((file, to) for to, file in whole.items() if there.get(to) != file.stat().st_size)


def upload(folder: Path, target: Path) -> None:
    """Put a folder's files where ``target`` lies in the store; whatever is there is replaced."""
    found = locate(target)
    if found is not None:
        store, name = found[0].store, found[1]
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        store.upload((file, f"{name}/{file.relative_to(folder).as_posix()}") for file in files)


def listed(folder: Path) -> list[Path]:
    """What a folder holds in its store, as paths here; nothing of other folders."""
    found = locate(folder)
    return [found[0].root / name for name in found[0].store.sizes(found[1])] if found else []


def made_ready(path: Path) -> None:
    """Make the folder that a file is to be written into, on a node that has not seen it."""
    if locate(path) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)


def forget(path: Path) -> None:
    """Delete a file or folder in the store that ``path`` is a mirror of; what lies here is the caller's."""
    found = locate(path)
    if found is not None:
        found[0].store.delete(found[1])


def _whole(path: Path) -> bool:
    return path.is_file() or any((path / marker).is_file() for marker in MARKERS)


@functools.lru_cache(maxsize=32)
def _mirror(address: str, root: Path) -> Mirror:
    return Mirror(Store(address), root)


@dataclass(frozen=True)
class Mirror:
    """What this node has of a run directory in a store, below ``root``."""

    store: Store
    root: Path

    def pull(self) -> None:
        """Make the small files here (those outside of artifacts and scratch) what they are in the store.

        Raises:
            BoomError: it holds something that is no run.
        """
        with self.store.first_look():
            there = self.store.sizes()
        if RUN not in there:
            if any(TEMPORARY not in name for name in there):
                raise BoomError(
                    f"{self.store.shown()} exists and is not a run directory of boom_ray. Give another --run-dir."
                )
            shutil.rmtree(self.root, ignore_errors=True)  # of a run that was deleted there
            return
        names = [name for name in there if _is_small(name)]
        all_at_once(lambda name, _: self._download(name, None), ((name, None) for name in names))
        for file in sorted(self.root.rglob("*")):
            name = file.relative_to(self.root).as_posix()
            if file.is_file() and _is_small(name) and name not in names:
                file.unlink(missing_ok=True)

    def bring(self, name: str) -> None:
        """Bring a file, an artifact or a folder of one, or what is below scratch and temporary folders.

        What has no marker is no artifact: nothing is brought.
        """
        target, within = self.root / name, _ARTIFACT.match(f"{name}/")
        with _locked(target):
            if self.store.size(name) is not None:
                if not target.is_file():
                    self._download(name, self._checksum(name))
            elif within and TEMPORARY not in name:
                artifact = within[0].rstrip("/")
                self._bring_artifact(artifact, name.removeprefix(artifact).lstrip("/"))
            else:
                self._bring_folder(name)

    def _bring_folder(self, name: str) -> None:
        there = self.store.sizes(name)
        if f"{name}/{CHECKPOINT}" in there:
            return self._bring_artifact(name)
        missing = [n for n, size in there.items() if _size_here(self.root / n) != size]
        return all_at_once(lambda n, _: self._download(n, None), ((n, None) for n in missing))

    def refresh(self, name: str) -> None:
        """Bring a file that is longer in the store than here."""
        size = self.store.size(name)
        if size is not None and size > (_size_here(self.root / name) or -1):
            self._download(name, None)

    def _bring_artifact(self, name: str, inside: str = "") -> None:
        """Bring what is missing of an artifact, its marker last, or of a folder ``inside`` it."""
        marker = next((m for m in MARKERS if self.store.has(f"{name}/{m}")), None)
        if marker is None:
            return
        listing = PUBLISHED_MANIFEST if marker == SUCCESS else marker
        content, target = self.store.manifest(f"{name}/{listing}"), self.root / name
        files: Mapping[str, Mapping[str, Any]] = json.loads(content or b"{}")["files"]
        wanted = {n: entry for n, entry in files.items() if not inside or n.startswith(f"{inside}/")}
        missing = {n: entry for n, entry in wanted.items() if _size_here(target / n) != entry["bytes"]}
        check_room(self.store.shown(name), sum(entry["bytes"] for entry in missing.values()), target)
        all_at_once(lambda n, entry: self._download(f"{name}/{n}", entry["sha256"]), missing.items())
        for last in () if inside else dict.fromkeys((listing, marker)):
            self._download(f"{name}/{last}", None)

    def _checksum(self, name: str) -> str | None:
        """Of a file of an artifact, as its manifest has it."""
        match = _ARTIFACT.match(name)
        content = self.store.manifest(f"{match[0]}{MANIFEST}") if match else None
        entry = json.loads(content)["files"].get(name.removeprefix(match[0])) if content and match else None
        return entry["sha256"] if entry else None

    def _download(self, name: str, sha256: str | None) -> None:
        if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
            raise BoomError(
                f"{self.store.shown()} holds {name[:200]!r}, a name that leaves the run directory. Refused."
            )
        target = self.root / name
        temporary = target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")

        def copied(files: Any, path: str) -> str:
            digest = hashlib.sha256()
            with files.open_input_stream(path) as source, open(temporary, "wb") as stream:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    with write_told(target):
                        stream.write(chunk)
            return digest.hexdigest()

        try:
            with write_told(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            found = self.store.attempt(copied, name, "read")
            if sha256 not in (None, found):
                raise BoomError(
                    f"{self.store.shown(name)} is damaged: its checksum is not that of its manifest. Delete "
                    f"{self.store.shown(str(Path(name).parent))}; the next run makes it again."
                )
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _is_small(name: str) -> bool:
    return not (name.startswith("scratch/") or TEMPORARY in name or _ARTIFACT.match(name))


def _size_here(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Held by one process of the node at a time, so that workers do not bring the same thing twice."""
    name = hashlib.sha256(str(target).encode()).hexdigest()[:16]
    folder = _mirrors() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
