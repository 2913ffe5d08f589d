"""Handing a published model to a model hub: checked file by file first, in one commit, and only when asked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.ledger import PUBLISHED, PUBLISHED_MANIFEST, SUCCESS, file_sha256
from boom_ray.paths import inside, safe_name
from boom_ray.redact import redact_known
from boom_ray.stores.files import retried
from boom_ray.stores.mirrors import opened

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
_WRITTEN = (".md", ".yml", "config.json", PUBLISHED_MANIFEST)  # files in which a recipe could have left something
CARD = "README.md"


@dataclass(frozen=True)
class Offer:
    """A published model that is as its manifest says.

    Attributes:
        directory: where it lies on this machine. name: what it was published as.
        files: bytes of each file, by its name, sorted; what is pushed. left_out: files that are no part of the model.
        card: its README.md.
    """

    directory: Path
    name: str
    files: dict[str, int]
    left_out: tuple[str, ...]
    card: str

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


@dataclass(frozen=True)
class Target:
    """``OWNER/NAME`` on the hub, the branch there (default: main), and whether only its owner may see it."""

    repository: str
    private: bool = True
    revision: str | None = None

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repository) or ".." in self.repository or "--" in self.repository:
            raise BoomError(f"{self.repository!r} is no repository of a model hub. Write OWNER/NAME.")


@dataclass(frozen=True)
class Pushed:
    """Where the model lies now. ``removed``: weights of an earlier model, taken away with the same commit."""

    url: str
    commit: str
    removed: tuple[str, ...]


def inspect(directory: str | Path) -> Offer:
    """Check a published model against its manifest; nothing is sent anywhere.

    Raises:
        BoomError: not a published model, one that is unfinished or damaged, or one that holds a credential.
    """
    folder = opened(directory)
    if not folder.is_dir():
        raise BoomError(f"{folder} is not a directory. Give a published model: RUN/published/NAME.")
    manifest = _manifest(folder)
    files = {safe_name(name, folder / PUBLISHED_MANIFEST): entry for name, entry in manifest["files"].items()}
    for name, entry in files.items():
        _check(folder, name, entry["sha256"])
    sizes = {name: (folder / name).stat().st_size for name in (*files, PUBLISHED_MANIFEST, SUCCESS)}
    _check_secrets(folder, sizes)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink()}
    card = (folder / CARD).read_text(encoding="utf-8") if CARD in files else ""
    return Offer(folder, folder.name, dict(sorted(sizes.items())), tuple(sorted(there - sizes.keys())), card)


def push(offer: Offer, target: Target, say: Callable[[str], None] = print) -> Pushed:
    """Put a model into a repository in one commit; the repository is made where there is none.

    Weights of an earlier model are removed from it in the same commit: loaders would mix them with the new ones.

    Raises:
        BoomError: no token, no permission, or a public repository where a private one is asked for.
        Infrastructure: the hub does not answer.
    """
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise BoomError("who pushes? Run `hf auth login`, or set HF_TOKEN to a token that may write.")
    api, uri = huggingface_hub.HfApi(library_name="boom_ray"), f"hf://{target.repository}"
    there = retried(lambda: _prepare(api, target), uri, "prepared")
    stale = tuple(name for name in there if name.endswith(_WEIGHTS) and name not in offer.files)
    say(f"pushing {len(offer.files)} files, {offer.bytes / 1e6:,.1f} MB, to {target.repository}")
    done = retried(lambda: _commit(api, offer, target, stale), uri, "pushed to")
    return Pushed(f"{api.endpoint}/{target.repository}/tree/{target.revision or 'main'}", done.oid, stale)


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published model, as its marker vouches for it."""
    file, marker = folder / PUBLISHED_MANIFEST, folder / SUCCESS
    if not file.is_file() or not marker.is_file():
        raise BoomError(f"{folder} {_instead(folder)}")
    text = file.read_bytes()
    if marker.read_text(encoding="utf-8", errors="replace").strip() != hashlib.sha256(text).hexdigest():
        raise _damaged(file)
    try:
        found: dict[str, Any] = json.loads(text)
        entries = [str(entry["sha256"]) for entry in found["files"].values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(file) from None
    if found.get("kind") != PUBLISHED or not entries:
        raise BoomError(f"{folder} is no published model: its manifest says {found.get('kind')!r}.")
    return found


def _instead(folder: Path) -> str:
    """What a directory that is no finished published model is, and what to give in its place."""
    if (folder / "run.json").is_file():
        names = sorted(marker.parent.name for marker in (folder / PUBLISHED).glob(f"[!.]*/{SUCCESS}"))
        told = f"Give one of its published models: {', '.join(names)}." if names else "It has published no model yet."
        return f"is a run directory. {told}"
    if folder.name.startswith(".") or (folder / PUBLISHED_MANIFEST).is_file() or folder.parent.name == PUBLISHED:
        return "is not finished: it has no manifest or no _SUCCESS. Run the recipe again, then push."
    if "scratch" in folder.parts or (folder / "manifest.json").is_file():
        return "is a part of a run, not what it published. Give RUN/published/NAME."
    return f"has no {PUBLISHED_MANIFEST}: it is not a model that boom_ray published. Give RUN/published/NAME."


def _check(folder: Path, name: str, digest: str) -> None:
    file = folder / name
    if not file.is_file():
        raise _damaged(file)
    inside(folder, name, file)
    if file_sha256(file) != digest:
        raise _damaged(file)


def _damaged(file: Path) -> BoomError:
    return BoomError(f"{file} is missing or differs from what was published: it is not pushed. Run the recipe again.")


def _check_secrets(folder: Path, names: dict[str, int]) -> None:
    for name in names:
        if name.endswith(_WRITTEN):
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            if redact_known(text) != text:
                raise BoomError(f"{folder / name} holds what looks like a credential: it is not pushed.")


def _prepare(api: Any, target: Target) -> list[str]:
    """Make repository and branch where they are not there; the files that the branch has."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(target.repository)
    except RepositoryNotFoundError:
        api.create_repo(target.repository, private=target.private)
    else:
        if target.private and not info.private:
            raise BoomError(f"{target.repository} is there and public. Say --public, or give another name.")
    if target.revision:
        api.create_branch(target.repository, branch=target.revision, exist_ok=True)
    return [entry.rfilename for entry in api.repo_info(target.repository, revision=target.revision).siblings or ()]


def _commit(api: Any, offer: Offer, target: Target, stale: tuple[str, ...]) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    added = [CommitOperationAdd(name, str(offer.directory / name)) for name in offer.files]
    removed = [CommitOperationDelete(name) for name in stale]
    message = f"{offer.name}, published by boom_ray"
    return api.create_commit(target.repository, [*added, *removed], commit_message=message, revision=target.revision)
