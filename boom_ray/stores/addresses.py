"""Addresses of run directories in a bucket, ``s3://BUCKET/NAME`` or ``gs://``, as users give them. Asks no store."""

from __future__ import annotations

import os
import re
from pathlib import Path

from boom_ray.config import BoomError
from boom_ray.stores.files import shown, split

SCHEMES = ("s3", "gs", "gcs")
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*):/+(?P<rest>.*)")  # a Path has lost one of the two slashes
_IN_RUN = re.compile(r"(?P<run>.+)/(?P<name>(base|members|averages|merges|published)/[^/]+-[0-9a-f]{16})")


def is_address(text: str | os.PathLike[str]) -> bool:
    return _ADDRESS.fullmatch(os.fspath(text)) is not None


def address_of(text: str) -> str:
    """An address as all processes write it.

    Raises:
        BoomError: it cannot hold a run.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or match["scheme"] not in SCHEMES:
        raise BoomError(f"run directory {shown(text)}: only s3://, gs:// and paths can hold a run.")
    scheme, bucket, key, query = split(f"{match['scheme']}://{match['rest']}")
    if "@" in bucket:
        raise BoomError(
            f"run directory {shown(text)}: its address stands in logs and reports, so it must hold no credentials. Put "
            f"them into the environment (AWS_ACCESS_KEY_ID ...) or a profile."
        )
    parts = [part for part in key.split("/") if part]
    if not bucket or not parts or {".", ".."} & set(parts):
        raise BoomError(f"run directory {shown(text)}: give a bucket and a folder in it, as in {scheme}://BUCKET/NAME.")
    return f"{scheme}://{bucket}/{'/'.join(parts)}{query}"


def below(home: str, name: str) -> str:
    """A run directory in a folder of runs, which may be an address with a query."""
    if not is_address(home):
        return str(Path(home).expanduser() / name)
    folder, mark, query = home.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def in_run(text: str) -> tuple[str, str]:
    """The address of the run, and the name of the model in it (empty: the run itself)."""
    address, mark, query = text.partition("?")
    match = _IN_RUN.fullmatch(address.rstrip("/"))
    return (f"{match['run']}{mark}{query}", match["name"]) if match else (text, "")
