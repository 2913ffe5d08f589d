"""Writing to disks: flushed, checksummed, and one message where a disk is full, wherever a write finds out."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.exit_codes import Infrastructure

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Arrow, safetensors and numpy put the system's error into words of their own
_WORDS = re.compile(
    r"No space left|StorageFull|Disk quota exceeded|File too large|FileTooLarge|requested and \d+ written"
)


_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR}


def refused_text(error: BaseException) -> str | None:
    """The message for a person where the system does not let a path be written or read; else None."""
    if not isinstance(error, OSError) or error.errno not in _REFUSED or not error.filename:
        return None
    return f"{error.filename}: {error.strerror}. Mend the rights or the path, or give another --run-dir."


class DiskFull(Infrastructure):
    """A write did not fit; what was there before it is as it was."""


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is that of a full disk."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or _WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def write_told(path: Path) -> Iterator[None]:
    """What is written inside belongs to ``path``.

    Raises:
        DiskFull: a write did not fit; names the path, the bytes that were written and those that are free.
        BoomError: the place may not be written to.
    """
    try:
        yield
    except BoomError:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskFull(full_text(path, error)) from error
        if _is_shut(error, path):
            raise BoomError(
                f"{path} cannot be written to: {error}. Give a --run-dir on storage that this user may write to."
            ) from error
        raise


def _is_shut(error: Exception, path: Path) -> bool:
    """Whether what failed was writing below ``path``; reading something else may be denied, too."""
    if not isinstance(error, OSError):
        return False
    ours = str(error.filename or "").startswith(str(path.parent))
    return error.errno == errno.EROFS or (error.errno in (errno.EACCES, errno.EPERM) and ours)


def full_text(path: Path, error: BaseException) -> str:
    """The message for a person."""
    existing = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    reason = (str(error).strip().splitlines() or ["no room"])[0]
    return (
        f"{path}: the disk is full after {_bytes(path):,} bytes of it, and {free:,} bytes are free ({reason}). Make "
        f"room and run the same command again: what was finished before is kept."
    )


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def file_sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
