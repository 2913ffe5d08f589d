"""Names of files that somebody else wrote down: in an index, a list of modules, a manifest, a listing of a bucket.

None of them is trusted. A name stays below the directory that it was found in, also through links.
"""

from __future__ import annotations

from pathlib import Path

from boom_ray.config import BoomError

_LONGEST = 255


def is_safe(name: str) -> bool:
    """Whether a name is a plain relative path: no ``..``, no root, no drive, no zero byte."""
    parts = name.split("/")
    return not ({"\0", "\\", ":"} & set(name) or {"", ".", ".."} & set(parts) or len(name) > _LONGEST)


def safe_name(name: str, origin: Path) -> str:
    """``name``, which the file ``origin`` states.

    Raises:
        BoomError: it leaves the directory, or is no plain name.
    """
    if not is_safe(name):
        raise BoomError(f"{origin}: the file name {name[:200]!r} leaves the directory or is not a plain name. Refused.")
    return name


def inside(root: Path, file: str, origin: Path) -> str:
    """Refuse a file that a link takes out of the directory; links into the hub cache's own ``blobs`` are its layout.

    Raises:
        BoomError: it is not there, leaves ``root``, or is no regular file; ``origin`` names it.
    """
    try:
        target = (root / file).resolve(strict=True)
    except (OSError, RuntimeError):
        raise BoomError(
            f"{origin} names {file}, which is not there. The checkpoint is incomplete: fetch it again."
        ) from None
    home = root.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise BoomError(
            f"{root / file} is a link that leaves the model directory. Refused: copy the file in its place."
        )
    if not target.is_file():
        raise BoomError(f"{root / file} is not a regular file.")
    return file
