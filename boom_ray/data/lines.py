"""Lines of text files, streamed: byte ranges of plain files, and gzip and zstd with bounds on what comes out.

Memory is one block and one line, whatever a file claims to hold.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

MAX_LINE_BYTES = 8 << 20  # a longer line is no training row
MAX_RATIO = 250  # text compresses 3 to 30 times; rows that repeat one another perhaps 100 times
_RATIO_FROM = 64 << 20  # a small file may be as repetitive as it likes
_BLOCK = 1 << 20
_CHUNK = 64 << 10


class Damaged(Exception):
    """The rest of a file cannot be read. Everything before it has been handed out."""


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Every line without its newline, blank ones too; None in the place of a line over ``MAX_LINE_BYTES``.

    Raises:
        Damaged: from ``blocks``, after the last whole line.
    """
    rest, overlong = b"", False
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield None if overlong or len(line) > MAX_LINE_BYTES else line
            overlong = False
        if len(rest) > MAX_LINE_BYTES:
            rest, overlong = b"", True
    if rest or overlong:
        yield None if overlong or len(rest) > MAX_LINE_BYTES else rest


def byte_range(raw: IO[bytes], start: int, stop: int | None) -> Iterator[bytes]:
    """The blocks of all lines whose first byte lies in [start, stop): ranges side by side give each line once."""
    position = raw.seek(max(start - 1, 0))
    skipping = start > 0
    while block := raw.read(_BLOCK):
        begin = 0
        if skipping:
            begin = block.find(b"\n") + 1
            if stop is not None and position + (begin or len(block)) >= stop:
                return  # all of the range belongs to a line that began before it
            skipping = not begin
        if not skipping:
            last = -1 if stop is None or stop - 1 >= position + len(block) else max(stop - 1 - position, 0)
            end = block.find(b"\n", last) + 1 if last >= 0 else 0
            yield block[begin : end or len(block)]
            if end:
                return
        position += len(block)


def decompressed(raw: IO[bytes], suffix: str) -> Iterator[bytes]:
    """Blocks of a .gz or .zst file, of one or several members.

    Raises:
        Damaged: cut, corrupt, or swelling to more than ``MAX_RATIO`` times its size. What could be read came first.
    """
    new, failure = _engine(suffix)
    given, at = 0, 0
    try:
        for block, start in _blocks(raw, new, sys.maxsize):
            given, at = given + len(block), start
            yield block
            if given > max(_RATIO_FROM, MAX_RATIO * raw.tell()):
                raise Damaged(f"the file swells to more than {MAX_RATIO} times its size, which no text does")
    except failure as error:
        yield from _rescued(raw, new, given, at)
        raise Damaged(f"the file is cut or damaged from here on ({error})") from None


def _rescued(raw: IO[bytes], new: Callable[[], Any], given: int, at: int) -> Iterator[bytes]:
    """What a failing chunk still held beyond the first ``given`` bytes: read once more, at last byte by byte."""
    raw.seek(0)
    seen = 0
    try:
        for block, _ in _blocks(raw, new, at):
            seen += len(block)
            if seen > given:
                yield block[max(len(block) - (seen - given), 0) :]
                given = seen
    except Exception:  # the same error again; the caller tells of it
        return


def _blocks(raw: IO[bytes], new: Callable[[], Any], fine_from: int) -> Iterator[tuple[bytes, int]]:
    """``(block, end of the chunks read before it)``; chunks are single bytes from ``fine_from`` on."""
    engine, position, chunk = new(), 0, b""
    while True:
        before = position
        if not chunk and (engine.eof or engine.needs_input):
            chunk = raw.read(_CHUNK if position < fine_from else 1)
            if not chunk:
                break
            position += len(chunk)
        if engine.eof:
            engine = new()
        out = engine.decompress(chunk, _BLOCK)
        chunk = engine.unused_data.lstrip(b"\0") if engine.eof else b""  # tar and tape tools pad gzip with zeros
        if out:
            yield out, before
    if position and not engine.eof:
        yield engine.decompress(b"", _BLOCK), position
        raise Damaged("the file is cut or damaged from here on (it ends too early)")


class _Gzip:
    """zlib with the interface that the standard library's other decompressors share."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


def _engine(suffix: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decompressor, and what it raises."""
    if suffix == ".gz":
        return _Gzip, zlib.error
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdDecompressor, zstd.ZstdError
