"""Training files as users have them: which files a source names, their digests, and their rows with line numbers."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from boom_ray.config import BoomError
from boom_ray.config.corpus import FilesSource
from boom_ray.data import lines, remote, tables
from boom_ray.data.lines import Damaged
from boom_ray.ledger import file_sha256
from boom_ray.stores.files import Entry, is_remote, open_file, shown

_TEXT = (".jsonl", ".ndjson")
_PACKED_TEXT = tuple(kind + packed for kind in (*_TEXT, ".json") for packed in (".gz", ".zst"))
_TABLES = (".parquet", ".arrow", ".feather")
SUFFIXES = (*_TEXT, *_PACKED_TEXT, *_TABLES)
_KINDS = f"boom_ray reads {', '.join(SUFFIXES)}."


@dataclass(frozen=True)
class BadRow:
    """What could not be read at all, and why."""

    reason: str


@dataclass(frozen=True)
class Span:
    """A part of a file: lines by their first byte, or row groups or record batches, in [start, stop)."""

    start: int = 0
    stop: int | None = None


WHOLE = Span()


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, wherever it lies; small, and fit to be sent to a worker.

    Attributes:
        uri: an absolute local path, or an address.
        size: bytes as stored.
        digest: what names the content where a listing says so; None for a local file, whose sha256 is computed.
    """

    uri: str
    size: int
    digest: str | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return shown(self.uri).rpartition("/")[2]

    def __str__(self) -> str:
        return shown(self.uri)

    def open(self) -> IO[bytes]:
        """A seekable stream of the bytes as stored.

        Raises:
            OSError: it cannot be opened.
        """
        return open_file(self.uri, self.size) if is_remote(self.uri) else open(self.uri, "rb")


def local_file(path: str | os.PathLike[str]) -> SourceFile:
    """A file of this machine.

    Raises:
        BoomError: it is not there.
    """
    file = Path(path).expanduser().absolute()  # a worker may stand in another folder
    try:
        return SourceFile(str(file), file.stat().st_size)
    except OSError as error:
        raise BoomError(f"{file} cannot be read: {error.strerror}. Check the path and its permissions.") from None


class Rows:
    """``(line, row)`` of a span, once. Lines count from 1 inside the span; ``row`` is a ``BadRow`` where unreadable.

    Attributes:
        lines: how many lines have been read so far, blank ones included; after the last row, all of the span.
    """

    def __init__(self, file: SourceFile, span: Span) -> None:
        self._file, self._span = file, span
        self.lines = 0

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        try:
            with self._file.open() as stream:
                for row in _raw_rows(stream, self._file.name, self._span):
                    self.lines += 1
                    if row is not _BLANK:
                        yield self.lines, row
        except Damaged as damage:
            self.lines += 1
            yield self.lines, BadRow(str(damage))
        except OSError as error:
            advice = "" if is_remote(self._file.uri) else ". Check the path and its permissions."
            raise BoomError(
                f"{self._file}, line {self.lines + 1}: cannot be read: {error.strerror or error}{advice}"
            ) from None


def read_rows(file: SourceFile, span: Span = WHOLE) -> Rows:
    """The rows of one span of a file.

    Bad JSON, invalid UTF-8, an overlong line and a cut or damaged file are ``BadRow``s: what was good before them is
    kept. Blank lines are counted and skipped.

    Raises:
        BoomError: while iterating, the file cannot be opened or read; it names file and line.
    """
    return Rows(file, span)


def spans(file: SourceFile, target_bytes: int) -> list[Span]:
    """Parts of about ``target_bytes`` that hold each row once, in order; one part of a file that cannot be cut."""
    if file.name.endswith(_TEXT):
        starts = range(0, max(file.size, 1), target_bytes)
        return [Span(s, s + target_bytes if s + target_bytes < file.size else None) for s in starts]
    if not file.name.endswith(_TABLES) or file.size <= target_bytes:
        return [WHOLE]
    try:
        with file.open() as stream:
            ranges = tables.cut(tables.group_sizes(stream, file.name.endswith(".parquet")), target_bytes)
    except OSError:
        return [WHOLE]  # reading it says why
    return [Span(*r) for r in ranges] or [WHOLE]


def resolve(source: FilesSource) -> list[SourceFile]:
    """The files of a source, sorted: one file, a folder's direct children, or what a glob matches.

    Raises:
        BoomError: nothing there, an empty folder, or a kind of file that boom_ray does not read.
    """
    if source.path is None:
        return [_remote_file(e) for e in remote.hub_files(source, SUFFIXES)]
    if is_remote(source.path):
        return [_remote_file(e) for e in remote.match_files(source.path, SUFFIXES)]
    path = Path(source.path).expanduser().absolute()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return [_readable(path)]
    if glob.has_magic(str(path)):
        files = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
        if not files:
            raise BoomError(f"no file matches {source.path}. Check the pattern; quote it in a shell.")
        return [_readable(file) for file in files]
    raise BoomError(f"training data {source.path} does not exist. Give a file, a folder or a glob in corpus.datasets.")


def file_digests(source: FilesSource) -> list[dict[str, Any]]:
    """``[{"name", "bytes", "digest"}]`` of a source's files: a changed file makes another corpus.

    A source of a hub is known by its name and revision, so that a recipe can be planned offline.
    """
    if (identity := remote.offline_identity(source)) is not None:
        return [{"name": identity, "bytes": None, "digest": identity}]
    files = resolve(source)
    return [{"name": f.name, "bytes": f.size, "digest": f.digest or file_sha256(f.uri)} for f in files]


def dataset_stem(file: SourceFile | Path) -> str:
    """The file's name without its suffixes: the dataset's name where nothing else names it."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if file.name.endswith(suffix):
            return file.name[: -len(suffix)]
    return file.name.rpartition(".")[0] or file.name


def _in_folder(folder: Path) -> list[SourceFile]:
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name.endswith(SUFFIXES) and f.name[0] != ".")
    if not files:
        raise BoomError(
            f"folder {folder} holds no training file. {_KINDS} For subfolders write {folder}/**/*.jsonl.gz."
        )
    return [local_file(f) for f in files]


def _readable(file: Path) -> SourceFile:
    return _known(local_file(file))


def _remote_file(entry: Entry) -> SourceFile:
    return _known(SourceFile(entry.uri, entry.size, entry.digest))


def _known(file: SourceFile) -> SourceFile:
    if not file.name.endswith(SUFFIXES):
        raise BoomError(f"{file} is of no known kind. {_KINDS} Convert it, or narrow the glob.")
    return file


_BLANK = object()


def _raw_rows(stream: IO[bytes], name: str, span: Span) -> Iterator[Any]:
    if name.endswith(_TABLES):
        yield from tables.read_table(stream, name.endswith(".parquet"), span.start, span.stop)
        return
    packed = os.path.splitext(name)[1]
    if packed in (".gz", ".zst"):
        blocks = lines.decompressed(stream, packed)
    else:
        blocks = lines.byte_range(stream, span.start, span.stop)
    for text in lines.split_lines(blocks):
        if text is None:
            yield BadRow(f"the line is longer than {lines.MAX_LINE_BYTES >> 20} MiB")
        else:
            yield _parse_json(text) if text and not text.isspace() else _BLANK


def _parse_json(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig" if text.startswith(b"\xef\xbb\xbf") else "utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(f"invalid UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return BadRow(f"bad JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:  # nested too deep; a number of too many digits
        return BadRow(f"bad JSON: {error}")
