"""The chain of a model's versions, read from what the ledger has published: who came from whom, with which weights.

A version's manifest names its parent, its data and its weights. The first version is what ``boom-ray run`` published;
it has no parent. Pure: nothing is imported but the ledger.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.ledger import PUBLISHED, PUBLISHED_MANIFEST, SUCCESS, Key, Ledger


@dataclass(frozen=True)
class Version:
    """One published model. ``update`` is what its manifest says of the update that made it; None: a run made it."""

    key: Key
    finished: float
    meta: Mapping[str, Any]

    @property
    def update(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self.meta.get("update")
        return found

    @property
    def number(self) -> int:
        return int(self.update["version"]) if self.update else 1

    @property
    def parent(self) -> str | None:
        """The parent's identity."""
        return str(self.update["parent"]["identity"]) if self.update else None

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"v{self.number}"


def read_versions(ledger: Ledger) -> list[Version]:
    """All versions of a run directory, the oldest first."""
    found = [
        Version(Key(PUBLISHED, manifest["label"], manifest["identity"]), manifest["finished"], manifest["meta"])
        for _, manifest in ledger.manifests(PUBLISHED)
    ]
    return sorted(found, key=lambda version: (version.finished, version.key.identity))


def lineage(versions: Sequence[Version], identity: str) -> list[Version]:
    """A version and its ancestors, the first version first.

    Raises:
        BoomError: a version is missing, or two are each other's ancestors.
    """
    known = {version.key.identity: version for version in versions}
    found: list[Version] = []
    wanted: str | None = identity
    while wanted is not None:
        version = known.get(wanted)
        if version is None or version in found:
            child = f"the parent of {found[-1].key.name}, " if found else ""
            raise BoomError(f"{child}version {wanted}, is not in the run directory: its chain cannot be followed.")
        found.append(version)
        wanted = version.parent
    return found[::-1]


def newest(versions: Sequence[Version], root: str) -> Version | None:
    """The head of the chains that begin with the version of identity ``root``: the highest number, of siblings the one
    that was published last."""
    known = {version.key.identity: version for version in versions}

    def first_of(version: Version) -> str | None:
        seen = set()
        while version.parent is not None and version.parent in known and version.key.identity not in seen:
            seen.add(version.key.identity)
            version = known[version.parent]
        return version.key.identity

    members = [version for version in versions if first_of(version) == root]
    return max(members, key=lambda v: (v.number, v.finished, v.key.identity), default=None)


def parent_for(line: Sequence[Version], data: str) -> Version:
    """The version that an update with these data goes onto: the last one, or, where a version of the line was made with
    them already, that one's parent, so that the same update is found again and another setting makes a sibling."""
    for before, version in itertools.pairwise(line):
        if version.update and version.update["data"]["digest"] == data:
            return before
    return line[-1]


def check_unchanged(ledger: Ledger, version: Version) -> None:
    """Compare a version with its manifest, and the manifest with its marker.

    Raises:
        BoomError: a file has changed, is missing, or is new.
    """
    folder = ledger.path(version.key)
    text = (folder / PUBLISHED_MANIFEST).read_bytes()
    marked = (folder / SUCCESS).read_text().strip() == hashlib.sha256(text).hexdigest()
    try:
        ledger.verify(version.key)
    except BoomError as error:
        changed = str(error).split(" is damaged", 1)[0]
        raise _changed(folder, changed) from None
    if not marked:
        raise _changed(folder, str(folder / PUBLISHED_MANIFEST))
    known = {*ledger.manifest(version.key)["files"], PUBLISHED_MANIFEST, SUCCESS}
    for file in sorted(p for p in folder.rglob("*.safetensors") if p.is_file()):
        if file.relative_to(folder).as_posix() not in known:
            raise _changed(folder, str(file))


def _changed(folder: Path, file: str) -> BoomError:
    return BoomError(
        f"{folder} is no longer the model that was published: {file} differs from its manifest. An update onto it "
        f"would have no known parent. Put the file back, or publish again: delete {folder} and run the recipe."
    )


def mass_share(behind: int, added: int) -> float:
    """The new member's weight by rows: its rows over all rows behind old and new.

    After any number of updates every model's part (:func:`mixed`) is its rows over all rows.
    """
    return added / (behind + added) if added else 0.0


def mixed(before: Sequence[float], share: float, candidate: Sequence[float]) -> list[float]:
    """The parts of the run's model and of every update's member in a new version.

    Args:
        before: parts in the current version, in sum 1. share: weight of what is merged into it.
        candidate: parts in that, one longer than ``before``, in any sum: the new member alone, or all members by rows.
    """
    total = math.fsum(candidate)
    return [(1 - share) * old + share * new / total for old, new in zip([*before, 0.0], candidate, strict=True)]
