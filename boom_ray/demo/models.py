"""Which two models are shown: what MODEL stands for, the base that it came from, and the prompts of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boom_ray.chain import newest, read_versions
from boom_ray.config import BoomError
from boom_ray.evaluate.vectors import default_prompt
from boom_ray.ledger import Ledger
from boom_ray.model_files import read_json
from boom_ray.runs import open_run
from boom_ray.stores.mirrors import fetch, opened, told

_KINDS = ("published", "merges", "members", "base", "start")  # of artifacts that are models, or lead to one
_SETTINGS = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Pair:
    """The directories of a model and of its base; ``why`` says what is known where there is no base."""

    model: Path
    base: Path | None
    why: str = ""


@dataclass(frozen=True)
class Prompts:
    """What a model wants before a query and before a passage."""

    query: str
    passage: str


def find_pair(model: Path, base: Path | None = None) -> Pair:
    """A model and the base that it is shown beside.

    Args:
        model: a model directory, or a run directory, for its newest published model.
        base: the same for the base; None: the one that the run's manifests lead to, else the one that the model's card
            names, if it is on this machine.

    Raises:
        BoomError: no such directory, a run that has published nothing, or a base that is the model itself.
    """
    shown = _directory(model)
    if base is not None:
        given = _directory(base)
        if given.resolve() == shown.resolve():
            raise BoomError(f"--base {base} is the model itself. Give the directory that it was trained from.")
        return Pair(shown, given)
    root = shown.resolve().parent.parent
    if (root / "world.json").is_file():
        found = _base_in_run(Ledger(root), shown.resolve())
        return Pair(shown, found, "" if found else "the manifests of its run lead to none")
    return _by_card(shown)


def prompts_of(directory: Path) -> Prompts:
    """The prompts that mteb and sentence-transformers put before the texts of a retrieval task of no special name: the
    same as :class:`boom_ray.evaluate.vectors.MtebEncoder`, which a test compares, without loading mteb."""
    own = (read_json(directory, _SETTINGS).get("prompts") or {}) if (directory / _SETTINGS).is_file() else {}
    general = default_prompt(directory)

    def first(*names: str) -> str:
        return next((str(own[name]) for name in names if name in own), general)

    return Prompts(
        query=first("Retrieval-query", "Retrieval", "query"),
        passage=first("Retrieval-document", "Retrieval", "document", "passage", "corpus"),
    )


def _directory(given: Path) -> Path:
    """The directory of the model that a path stands for."""
    path = opened(given)
    if (path / "world.json").is_file():
        return _published(path)
    if not path.is_dir():
        raise BoomError(f"{given} is not a directory. Give a model directory, or a run's for the model it published.")
    return path


def _published(root: Path) -> Path:
    """The newest version of what a run, as its recipe is now, has published."""
    _, ledger, keys = open_run(root)
    last = newest(read_versions(ledger), keys.published.identity)
    if last is None:
        raise BoomError(
            f"{told(root)} has published no model yet. Finish it first: boom-ray run {told(root / 'recipe.yaml')} "
            f"--run-dir {told(root)}"
        )
    return ledger.path(last.key)


def _base_in_run(ledger: Ledger, model: Path) -> Path | None:
    """The base behind an artifact of a run: from a published model to its merge, from there to its base."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {
        manifest["identity"]: (folder, manifest["inputs"])
        for kind in _KINDS
        for folder, manifest in ledger.manifests(kind)
    }
    start, inputs = found.get(_identity(model.name), (ledger.root, {}))
    if start.resolve() != model:
        return None
    for _ in found:  # at most: a manifest that somebody wrote could lead to itself
        above = inputs.get("merge") or inputs.get("member")
        inputs = found.get(above, (start, {}))[1] if above else inputs
    base = found.get(_identity(inputs.get("base", "")))
    return fetch(base[0]) if base else None


def _identity(name: Any) -> str:
    """Of an artifact, by its identity alone, its name or its path."""
    return str(name).rpartition("-")[2]


def _by_card(model: Path) -> Pair:
    """A model outside of runs: its card names the base on a model hub, which may have been downloaded before."""
    name = _base_of_card(model / "README.md")
    if name is None:
        return Pair(model, None, "it is in no run, and its card names none")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=["config.json"]))
    except (OSError, ValueError):  # it is not there, or the card's words are no name
        folder = None
    if folder is None or not any(folder.glob("*.safetensors")):
        return Pair(model, None, f"its card names {name!r}, which is not on this machine")
    return Pair(model, folder)


def _base_of_card(card: Path) -> str | None:
    """``base_model`` of a model card's front matter, if it is one."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return None
    try:
        head = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return None
    named = head.get("base_model") if isinstance(head, dict) else None
    names = named if isinstance(named, list) else [named]
    return names[0] if len(names) == 1 and isinstance(names[0], str) else None
