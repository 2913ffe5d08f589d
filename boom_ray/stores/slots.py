"""One small file that all hosts of a run see, such as its lease: made by one, taken by one, never half there."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from boom_ray.stores.disks import write_durably

_ABANDONED = 60.0  # seconds after which a claim was left by a process that was killed
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class Slot(Protocol):
    """One small file that all hosts see."""

    def read(self) -> str | None:
        """What it holds; None where there is none."""

    def create(self, text: str) -> bool:
        """Make it, complete; False where there is one already."""

    def replace(self, text: str) -> None:
        """Put ``text`` in its place by one step."""

    def take(self, seen: str) -> bool:
        """Remove it if it still holds ``seen``; of several who try one succeeds."""


class FileSlot:
    """A file on a POSIX filesystem, NFS among them: made by a hard link, taken by who claims what it holds."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str | None:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def create(self, text: str) -> bool:
        mine = self._sibling()
        write_durably(mine, text)
        try:
            os.link(mine, self._path)
        except (FileExistsError, FileNotFoundError):  # or a sweep took it for a leftover: the caller looks again
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._create_open(text)
        finally:
            mine.unlink(missing_ok=True)
        return True

    def _create_open(self, text: str) -> bool:
        """Where there are no hard links: others may see it empty for a moment."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        return True

    def replace(self, text: str) -> None:
        mine = self._sibling()
        write_durably(mine, text)
        try:
            os.replace(mine, self._path)
        except FileNotFoundError:  # the run's own sweep took it for a leftover
            self.replace(text)

    def take(self, seen: str) -> bool:
        claim = self._path.with_name(f".tmp-{self._path.name}-after-{hashlib.sha256(seen.encode()).hexdigest()[:16]}")
        try:
            os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            with suppress(FileNotFoundError):
                if time.time() - claim.stat().st_mtime > _ABANDONED:
                    claim.unlink()
            return False
        try:
            if self.read() != seen:
                return False
            self._path.unlink(missing_ok=True)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _sibling(self) -> Path:
        return self._path.with_name(f".tmp-{self._path.name}-{secrets.token_hex(4)}")
