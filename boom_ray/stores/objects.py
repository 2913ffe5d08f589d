"""A run directory's objects in a bucket: listed, read, written and deleted with bounded retries.

An object appears whole when its upload ends, and an artifact with its marker, which is uploaded last: what a kill
leaves has no marker, is never read, and is deleted by the next run. Names are those of a run directory on a disk.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from boom_ray.config import BoomError
from boom_ray.exit_codes import Infrastructure
from boom_ray.stores.files import filesystem, retried, shown, split

MANIFEST, PUBLISHED_MANIFEST, SUCCESS, CHECKPOINT = "manifest.json", "boom_manifest.json", "_SUCCESS", "checkpoint.json"
RUN = "run.json"  # says that a directory is a run, and of which recipe
MARKERS = (SUCCESS, MANIFEST, CHECKPOINT)  # what is written last says that the rest is there
TEMPORARY = ".tmp-"
ATTEMPTS = 6  # with the pauses between them about a minute
CHUNK = 4 << 20
_AT_ONCE = 8  # objects on their way
_TEMPORARY_PART = re.compile(r"(?:[^/]+/)*?\.tmp-[^/]+")
_SETTLE = 2.0  # seconds in which another writer of the same object would show

Result = TypeVar("Result")


class Store:
    """A run directory's objects; names are relative to it. What this process has seen to exist it does not ask again.

    Raises, in all methods:
        Infrastructure: no answer after ``ATTEMPTS`` attempts, or a refusal in mid-run (credentials that expired).
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._seen: set[str] = set()
        self._manifests: dict[str, bytes] = {}
        self._stays: type[BoomError] = Infrastructure

    def attempt(self, action: Callable[[Any, str], Result], name: str, verb: str) -> Result:
        """``action(filesystem, path of this name)``."""
        scheme, bucket, key, query = split(self.address)

        def run() -> Result:
            files, root = filesystem(self.address)
            return action(files, f"{root.rstrip('/')}/{key}/{name}".rstrip("/"))

        uri = f"{scheme}://{bucket}/{key}/{name}".rstrip("/") + query
        return retried(run, uri, verb, ATTEMPTS, self._stays)

    @contextmanager
    def first_look(self) -> Iterator[None]:
        """Forget what was seen before; what is refused inside is a mistake in the address."""
        self._seen.clear()
        self._manifests.clear()
        self._stays = BoomError
        try:
            self.attempt(_require_bucket, "", "opened")
            yield
        finally:
            self._stays = Infrastructure

    def sizes(self, below: str = "") -> dict[str, int]:
        """Bytes of every object below a name, sorted."""
        import pyarrow.fs as filesystems

        def listed(files: Any, path: str) -> dict[str, int]:
            found = files.get_file_info(filesystems.FileSelector(path, recursive=True, allow_not_found=True))
            start = len(path) - len(below)
            return {info.path[start:].lstrip("/"): info.size for info in found if info.is_file}

        return dict(sorted(self.attempt(listed, below, "listed").items()))

    def has(self, name: str) -> bool:
        if name not in self._seen and self.size(name) is not None:
            self._seen.add(name)
        return name in self._seen

    def size(self, name: str) -> int | None:
        def looked(files: Any, path: str) -> int | None:
            info = files.get_file_info(path)
            return int(info.size) if info.is_file else None

        return self.attempt(looked, name, "looked up")

    def read(self, name: str) -> bytes | None:
        """An object's bytes, None where there is none."""

        def whole(files: Any, path: str) -> bytes | None:
            try:
                with files.open_input_stream(path) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self.attempt(whole, name, "read")

    def manifest(self, name: str) -> bytes | None:
        """As :meth:`read`, of files that never change once they are there."""
        if name not in self._manifests:
            content = self.read(name)
            if content is None:
                return None
            self._manifests[name] = content
        return self._manifests[name]

    def write(self, name: str, content: bytes) -> None:
        """Replace an object."""

        def put(files: Any, path: str) -> None:
            with files.open_output_stream(path) as stream:
                stream.write(content)

        self.attempt(put, name, "written")

    def upload(self, files: Iterable[tuple[Path, str]]) -> None:
        """Put files under their names."""

        def put(file: Path, name: str) -> None:
            def copied(store: Any, path: str) -> None:
                with open(file, "rb") as source, store.open_output_stream(path) as stream:
                    while chunk := source.read(CHUNK):
                        stream.write(chunk)

            self.attempt(copied, name, "written")

        all_at_once(put, files)

    def delete(self, name: str) -> None:
        """An object, or all below a name."""

        def gone(files: Any, path: str) -> None:
            files.delete_file(path) if is_file else files.delete_dir(path)

        is_file = self.size(name) is not None
        if is_file or self.sizes(name):
            self.attempt(gone, name, "deleted")
        self._seen = {seen for seen in self._seen if seen != name and not seen.startswith(name + "/")}
        self._manifests = {n: text for n, text in self._manifests.items() if not n.startswith(name + "/")}

    def publish(self, directory: Path, name: str, marker: str) -> None:
        """Put an artifact there: its files, and, when all have arrived, its marker.

        A note stands beside it meanwhile, so that :meth:`sweep` knows what a kill has left.
        """
        note = f"{Path(name).parent.as_posix()}/{TEMPORARY}{Path(name).name}"
        self.delete(name)  # of an upload that was killed, or of an artifact that somebody deleted in part
        self.write(note, b"")
        files = {f"{name}/{f.relative_to(directory).as_posix()}": f for f in directory.rglob("*") if f.is_file()}
        last = files.pop(f"{name}/{marker}")
        self.upload((file, to) for to, file in files.items())
        there = self.sizes(name)
        for to, file in files.items():
            if there.get(to) != file.stat().st_size:
                raise Infrastructure(f"{self.shown(to)} has not arrived whole in the store. Run again.")
        self.upload([(last, f"{name}/{marker}")])
        self.delete(note)

    def sweep(self) -> None:
        """Delete what uploads that were killed have left. Only while no other run is writing."""
        names = self.sizes()
        for note in sorted({found[0] for name in names if (found := _TEMPORARY_PART.match(name))}):
            folder, _, own = note.rpartition("/")
            name = f"{folder}/{own.removeprefix(TEMPORARY)}"
            if note in names and not any(f"{name}/{marker}" in names for marker in MARKERS):
                self.delete(name)
            self.delete(note)

    def shown(self, name: str = "") -> str:
        """An object's address for people, without query."""
        return f"{shown(self.address)}/{name}".rstrip("/")


def _require_bucket(files: Any, path: str) -> None:
    if not files.get_file_info(path.partition("/")[0]).type.value:
        raise FileNotFoundError(f"no such bucket: {path.partition('/')[0]}")


class ObjectSlot:
    """A small object that one writer at a time claims. A bucket has no exclusive create: who claims it writes, waits
    until another claim would show, and reads back."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name

    def read(self) -> str | None:
        content = self._store.read(self._name)
        return None if content is None else content.decode()

    def create(self, text: str) -> bool:
        if self.read() is not None:
            return False
        self.replace(text)
        time.sleep(_SETTLE)
        return self.read() == text

    def replace(self, text: str) -> None:
        self._store.write(self._name, text.encode())

    def take(self, seen: str) -> bool:
        """Remove it if it still holds ``seen``."""
        if self.read() != seen:
            return False
        self._store.delete(self._name)
        return True


def all_at_once(action: Callable[[Any, Any], None], items: Iterable[tuple[Any, Any]]) -> None:
    """``action`` on all, some at a time; the first error ends it."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        futures = [pool.submit(action, *item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
