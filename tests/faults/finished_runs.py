"""What a finished run has published, for comparing a disturbed run with one that was left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

TIMED = ("README.md", "boom_manifest.json", "_SUCCESS")  # card, times and costs; the marker is the manifest's checksum


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def timeless(folder: Path) -> dict[str, bytes]:
    """The files of a published directory that do not tell when and how fast it was made."""
    return {name: data for name, data in content(folder).items() if name not in TIMED}


def published(run_dir: Path) -> dict[str, bytes]:
    """:func:`timeless` of the only directory that a run has published."""
    (folder,) = (run_dir / "published").glob("*-*")
    return timeless(folder)


def take_corpus(run_dir: Path, into: Path) -> None:
    """Begin a run directory with the corpus, start and tokens of another one, where these are not under test."""
    into.mkdir()
    shutil.copy2(run_dir / "run.json", into)
    for kind in ("corpus", "start", "tokens"):
        shutil.copytree(run_dir / kind, into / kind)
