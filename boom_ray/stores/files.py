"""Files that lie elsewhere: ``s3://``, ``gs://`` and ``hf://``, listed with their digests and read with retries.

One place knows how an address is opened, which errors pass and which stay, and how much may be fetched.
"""

from __future__ import annotations

import functools
import io
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import parse_qsl, unquote

from boom_ray.config import BoomError
from boom_ray.exit_codes import Infrastructure
from boom_ray.stores.disks import DiskFull

ATTEMPTS = 3  # on top of those that the stores' own clients make
_FIRST_WAIT, _MOST_WAIT = 1.0, 20.0  # seconds
_BUFFER = 4 << 20
_RESERVE = 1 << 30  # bytes left free beside what is staged
_ANSWER = 30.0  # seconds without a byte after which a store's answer counts as lost; its client's own 3 s are short
_S3_OPTIONS = {"endpoint_override", "region", "scheme"}  # of an address, as PyArrow reads them
_PASSING = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTL|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_TIME|UNAVAILABLE|DEADLINE|"
    r"timed? ?out|reset by peer|\b(408|429|500|502|503|504)\b",
    re.IGNORECASE,
)
_PARTS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<bucket>[^/?]*)/?(?P<key>.*?)(?P<query>\?[\w.%-]+=[^/]*)?")
_HUB = re.compile(r"hf://(?P<kind>datasets/|models/)?(?P<name>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<key>.*))?")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Entry:
    """A file that lies elsewhere.

    Attributes:
        uri: how to open it; of a hub, with the commit.
        size: bytes.
        digest: changes with the content: sha256 or git blob on a hub, size and time of change in a bucket.
    """

    uri: str
    size: int
    digest: str


class Unreachable(OSError):
    """A file could not be read, for all the attempts; the text says which and why."""


def is_remote(uri: str) -> bool:
    return "://" in uri


def shown(uri: str) -> str:
    """An address for messages and reports: without credentials and query."""
    if not is_remote(uri) or uri.startswith("hf://"):
        return uri
    scheme, bucket, key, _ = split(uri)
    return f"{scheme}://{bucket.rpartition('@')[2]}/{key}"


def split(uri: str) -> tuple[str, str, str, str]:
    """``(scheme, bucket with credentials, key, query)`` of an object store's address; a ``?`` may be part of a glob."""
    match = _PARTS.fullmatch(uri)
    if not match:
        raise BoomError(f"{uri} is no address. Write s3://BUCKET/PATH, gs://BUCKET/PATH or hf://datasets/OWNER/NAME.")
    if ":" in match["bucket"] and "@" not in match["bucket"]:
        raise BoomError(f"{uri} is no address: no bucket has a colon, and a slash inside of a secret is written %2F.")
    return match["scheme"], match["bucket"], match["key"], match["query"] or ""


def hub_parts(uri: str) -> tuple[str, str, str | None, str]:
    """``(repository type, owner/name, revision, path)`` of an ``hf://`` address.

    Raises:
        BoomError: no owner and name.
    """
    match = _HUB.fullmatch(uri)
    if not match or (match["kind"] is None and match["name"].startswith("datasets/")):
        raise BoomError(
            f"{uri} is no address of the Hugging Face hub. Write hf://[datasets/]OWNER/NAME[@REVISION]/PATH."
        )
    kind = "dataset" if match["kind"] == "datasets/" else "model"
    revision = unquote(match["revision"]) if match["revision"] else None
    return kind, match["name"], revision, (match["key"] or "").strip("/")


def list_files(uri: str) -> list[Entry]:
    """All files below an address, or the one file that it names, sorted; ``uri`` holds no glob.

    Raises:
        BoomError: nothing there, no such bucket, access denied, or not reachable after ``ATTEMPTS`` attempts.
    """
    entries = retried(lambda: _list_hub(uri) if uri.startswith("hf://") else _list_store(uri), uri, "listed")
    return sorted(entries, key=lambda e: e.uri)


def open_file(uri: str, size: int) -> IO[bytes]:
    """A seekable, buffered stream. A connection that breaks is taken up again where it broke.

    Raises:
        Unreachable: on reading, what ``ATTEMPTS`` attempts could not read.
    """
    return io.BufferedReader(_Remote(uri, size), _BUFFER)


def retried(
    action: Callable[[], Result], uri: str, verb: str, attempts: int = ATTEMPTS, stays: type[BoomError] = BoomError
) -> Result:
    """``action()``, again after a pause where the error may pass, ``attempts`` times at most.

    Raises:
        Infrastructure: the last of the errors that may pass.
        BoomError: one that stays, at once, as ``stays``.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except BoomError:
            raise
        except Exception as error:  # pyarrow and the hub raise their own, the operating system's and their clients'
            passing = may_pass(error)
            if attempt == attempts or not passing:
                told = f"{shown(uri)} cannot be {verb}: {_reason(error)}. {_advice(error, attempts)}"
                raise (Infrastructure if passing else stays)(told) from None
        time.sleep(min(_FIRST_WAIT * 4 ** (attempt - 1), _MOST_WAIT) * random.uniform(0.5, 1.0))
    raise AssertionError


def may_pass(error: Exception) -> bool:
    """Whether trying again could help: a broken connection, a time-out, a busy server."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in (408, 429) or status >= 500
    network = isinstance(error, ConnectionError | TimeoutError) or _is_transport(error)
    return network or bool(_PASSING.search(str(error)))


def check_room(what: str, size: int, place: Path) -> None:
    """Ask before fetching.

    Raises:
        DiskFull: ``size`` bytes and a reserve do not fit on the disk of ``place``.
    """
    existing = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if size + _RESERVE > free:
        raise DiskFull(
            f"{shown(what)} has {size / 1e9:.2f} GB and {existing} has {free / 1e9:.2f} GB free, of which "
            f"{_RESERVE / 1e9:.2f} GB stay free. Make room there, or set BOOM_RAY_HOME (BOOM_RAY_MIRRORS for a "
            f"run directory's copies) to a folder on a larger disk."
        )


class _Remote(io.RawIOBase):
    """Ranges of one remote file; the connection is opened when first needed and again after it broke."""

    def __init__(self, uri: str, size: int) -> None:
        self._uri, self._size, self._position = uri, size, 0
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        try:
            data = retried(lambda: self._read(wanted), self._uri, "read")
        except BoomError as error:
            raise Unreachable(str(error)) from None
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, wanted: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = _open_hub(self._uri) if self._uri.startswith("hf://") else _open_store(self._uri)
            self._stream.seek(self._position)
            data = self._stream.read(wanted)
        except Exception:
            self._stream = None
            raise
        if not data:
            raise OSError(f"it ended at byte {self._position} of {self._size}: has it been changed meanwhile?")
        return bytes(data)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        super().close()


def _list_store(uri: str) -> list[Entry]:
    import pyarrow.fs as filesystems

    scheme, bucket, key, query = split(uri)
    store, root = filesystem(uri)
    path = f"{root.rstrip('/')}/{key}".rstrip("/")
    info = store.get_file_info(path)
    found = [info] if info.is_file else store.get_file_info(filesystems.FileSelector(path, recursive=True))
    prefix = len(root.rstrip("/")) + 1
    return [
        Entry(f"{scheme}://{bucket}/{f.path[prefix:]}{query}", f.size, f"{f.size}-{f.mtime_ns}")
        for f in found
        if f.is_file
    ]


def _open_store(uri: str) -> Any:
    store, root = filesystem(uri)
    return store.open_input_file(f"{root.rstrip('/')}/{split(uri)[2]}")


def filesystem(uri: str) -> tuple[Any, str]:
    """PyArrow's filesystem and the root of a bucket (or, for ``file://``, the root directory)."""
    return _filesystem(*split(uri)[:2], split(uri)[3])


@functools.lru_cache(maxsize=32)  # a new one asks for credentials, and Amazon for the bucket's region
def _filesystem(scheme: str, bucket: str, query: str) -> tuple[Any, str]:
    import pyarrow.fs as filesystems

    options: dict[str, Any] = dict(parse_qsl(query.removeprefix("?")))
    if scheme == "s3" and options.keys() <= _S3_OPTIONS and "@" not in bucket:
        if not options.keys() & {"endpoint_override", "region"} and not os.environ.get("AWS_ENDPOINT_URL"):
            options["region"] = filesystems.resolve_s3_region(bucket)
        options |= {"request_timeout": _ANSWER, "connect_timeout": _ANSWER / 3}
        return filesystems.S3FileSystem(**options, allow_delayed_open=True), bucket  # one request, if small
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in options:
        query += f"{'&' if query else '?'}retry_limit_seconds={_ANSWER / 3:.0f}"  # its client's own are 15 minutes
    return filesystems.FileSystem.from_uri(f"{scheme}://{bucket}{'' if bucket else '/'}{query}")


def _list_hub(uri: str) -> list[Entry]:
    import huggingface_hub

    kind, name, revision, key = hub_parts(uri)
    api = huggingface_hub.HfApi()
    info: Any = api.repo_info(name, repo_type=kind, revision=revision, files_metadata=True)
    root = f"hf://{'datasets/' if kind == 'dataset' else ''}{name}@{info.sha}"
    files = [f for f in info.siblings or () if not key or f.rfilename == key or f.rfilename.startswith(key + "/")]
    if not files:
        raise BoomError(f"{uri} holds no file. Check the path and the revision.")
    return [Entry(f"{root}/{f.rfilename}", f.size or 0, f.lfs.sha256 if f.lfs else f.blob_id or "") for f in files]


def _open_hub(uri: str) -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(uri.removeprefix("hf://"), "rb", block_size=_BUFFER, cache_type="readahead")


def _is_transport(error: Exception) -> bool:
    """A network error of an HTTP client, whichever of them the hub's library uses."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "RequestException"}) and "HTTPStatusError" not in names


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")


def _advice(error: Exception, attempts: int) -> str:
    text = f"{type(error).__name__} {error}"
    if re.search(r"ACCESS_DENIED|Forbidden|\b40[13]\b|Unauthorized|Gated|RepositoryNotFound", text):
        return "Check the name and the credentials."
    if re.search(r"NO_SUCH_BUCKET|NoSuchBucket|not found|NotFound|does not exist|\b404\b", text, re.IGNORECASE):
        return "Check the name and the path."
    if may_pass(error):
        return f"{attempts} attempts failed: check the network and the endpoint."
    return "Check the address."
