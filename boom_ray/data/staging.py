"""Token shards on a node's own disk: copied there once, whoever of the node's workers comes first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boom_ray.config import BoomError

_SPARE = 1.05  # disk that has to be free, as a share of what is copied


def stage(directory: Path, home: Path | None) -> Path:
    """The directory's copy below ``home``, made if it is not there; the directory itself where ``home`` is None.

    The first worker of a node copies, the others wait for it. A copy appears by one rename when it is whole and as
    large as the original, so that a kill leaves none or all of it.

    Raises:
        BoomError: ``home`` cannot be written to, has too little room, or the original changes while it is copied.
    """
    if home is None:
        return directory
    directory, home = directory.absolute(), home.expanduser().absolute()
    place = hashlib.sha256(str(directory).encode()).hexdigest()[:8]
    target = home / f"{directory.name}-{place}"  # runs of one name may lie in several places
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / f".{target.name}.lock"):
            if not target.is_dir() or _sizes(target) != _sizes(directory):
                _copy(directory, target)
    except OSError as error:
        raise BoomError(
            f"{directory} cannot be copied to resources.staging {home}: {error.strerror or error}. Give a folder on "
            f"the nodes' own disks that can be written to, or leave resources.staging out."
        ) from None
    return target


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Held by one process of the node at a time; a process that dies lets it go."""
    with open(file, "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _copy(directory: Path, target: Path) -> None:
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):  # of a killed worker: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    sizes, free = _sizes(directory), shutil.disk_usage(target.parent).free
    need = int(_SPARE * sum(sizes.values()))
    if need > free:
        raise BoomError(
            f"{directory} takes {need / 1e9:.2f} GB and resources.staging {target.parent} has {free / 1e9:.2f} GB free."
            f" Make room there, or leave resources.staging out."
        )
    temporary = target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    shutil.copytree(directory, temporary)
    if _sizes(temporary) != sizes:
        shutil.rmtree(temporary)
        raise BoomError(f"{directory} changed while it was copied to {target.parent}. Run again when it is whole.")
    shutil.rmtree(target, ignore_errors=True)
    os.rename(temporary, target)


def _sizes(directory: Path) -> dict[str, int]:
    return {f.relative_to(directory).as_posix(): f.stat().st_size for f in directory.rglob("*") if f.is_file()}
