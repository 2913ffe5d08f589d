"""Training files as users have them: which files a source names, their digests, and their rows with line numbers."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from boom_ray.config import BoomError, FilesSource
from boom_ray.ledger import file_sha256

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
MAX_LINE_BYTES = 8 << 20  # a longer line is no training row; the bound also stops a decompression bomb
_KINDS = f"boom_ray reads {', '.join(SUFFIXES)}."


@dataclass(frozen=True)
class BadRow:
    """What could not be read at all, and why."""

    reason: str


def resolve(source: FilesSource) -> list[Path]:
    """The files of a source, absolute and sorted: one file, a folder's direct children, or what a glob matches.

    Raises:
        BoomError: nothing there, an empty folder, or a kind of file that boom_ray does not read.
    """
    path = Path(source.path).expanduser().absolute()  # a worker may stand in another folder
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
    """``[{"path", "bytes", "sha256"}]`` of a source's files: a changed file makes another corpus."""
    files = resolve(source)
    return [{"path": str(f), "bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files]


def dataset_stem(file: Path) -> str:
    """The file's name without its suffixes: the dataset's name where nothing else names it."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if file.name.endswith(suffix):
            return file.name[: -len(suffix)]
    return file.stem


def read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """``(line, row)`` of one file, lines counted from 1; ``row`` is a ``BadRow`` where it cannot be read.

    Bad JSON, invalid UTF-8, an overlong line and a cut or damaged file are such rows: what was good before them is
    kept. Blank lines are skipped.

    Raises:
        BoomError: the file cannot be opened.
    """
    try:
        if file.name.endswith(".parquet"):
            yield from _parquet_rows(file)
            return
        with open(file, "rb") as raw:
            stream: Any = gzip.GzipFile(fileobj=raw) if file.name.endswith(".gz") else raw
            for line, text in _lines(stream):
                yield line, text if isinstance(text, BadRow) else _parse_json(text)
    except OSError as error:
        raise BoomError(
            f"{file} cannot be read: {error.strerror or error}. Check the path and its permissions."
        ) from None


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name.endswith(SUFFIXES) and f.name[0] != ".")
    if not files:
        raise BoomError(
            f"folder {folder} holds no training file. {_KINDS} For subfolders write {folder}/**/*.jsonl.gz."
        )
    return files


def _readable(file: Path) -> Path:
    if not file.name.endswith(SUFFIXES):
        raise BoomError(f"{file} is of no known kind. {_KINDS} Convert it, or narrow the glob.")
    return file


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | BadRow]]:
    line = 0
    while True:
        line += 1
        try:
            text = stream.readline(MAX_LINE_BYTES + 1)
            overlong = len(text) > MAX_LINE_BYTES
            while overlong and text and not text.endswith(b"\n"):
                text = stream.readline(MAX_LINE_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            yield line, BadRow(f"the gzip file is cut or damaged from here on ({error})")
            return
        if not text and not overlong:
            return
        if overlong:
            yield line, BadRow(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
        elif not text.isspace():
            yield line, text


def _parse_json(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRow(f"invalid UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return BadRow(f"bad JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:  # nested too deep; a number of too many digits
        return BadRow(f"bad JSON: {error}")


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except pa.ArrowException as error:
        yield line + 1, BadRow(f"the Parquet file is damaged from here on ({str(error).splitlines()[0]})")
