"""Training files that lie elsewhere: globs over buckets and hubs, and the files of a split of a hub's dataset."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import yaml

from boom_ray.config import BoomError
from boom_ray.config.corpus import FilesSource
from boom_ray.stores.files import Entry, hub_parts, list_files, open_file, shown, split

_MOST_README = 4 << 20  # bytes
_SPLIT_WORDS = ("train", "training", "test", "testing", "eval", "evaluation", "dev", "validation", "valid", "val")


def match_files(uri: str, suffixes: Sequence[str]) -> list[Entry]:
    """One file, a folder's direct children of known kinds, or what a glob matches (``**`` crosses folders); sorted.

    Raises:
        BoomError: nothing there, or it cannot be listed.
    """
    path = path_of(uri)
    if not glob.has_magic(path):
        entries = list_files(uri)
        if len(entries) == 1 and path_of(entries[0].uri) == path:
            return entries
        depth = path.rstrip("/").count("/") + 1 if path else 0
        direct = [e for e in entries if path_of(e.uri).count("/") == depth]
        return _wanted(direct, suffixes, f"folder {shown(uri)} holds no training file of a known kind: give a glob")
    folder = "/".join(path.split("/")[: next(i for i, p in enumerate(path.split("/")) if glob.has_magic(p))])
    pattern = re.compile(_expression(path))
    start = uri.replace(path, folder, 1) if folder else uri.replace("/" + path, "", 1)
    return _wanted(
        [e for e in list_files(start) if pattern.fullmatch(path_of(e.uri))],
        (),
        f"no file matches {shown(uri)}: check the pattern",
    )


def hub_files(source: FilesSource, suffixes: Sequence[str]) -> list[Entry]:
    """The files of a split of a hub's dataset: as its card's ``configs`` say, else by the names of folders and files.

    Raises:
        BoomError: no such dataset, revision, subset or split (with those that there are), or it cannot be listed.
    """
    root = f"hf://datasets/{source.hub}" + (f"@{quote(source.revision, safe='')}" if source.revision else "")
    entries = list_files(root)
    configs = _configs(entries, root)
    known = [e for e in entries if e.uri.endswith(tuple(suffixes))]
    if configs:
        patterns = _patterns(configs, source, root)
        expressions = [re.compile(_expression(p)) for p in patterns]
        found = [e for e in entries if any(x.fullmatch(path_of(e.uri)) for x in expressions)]
        return _wanted(found, suffixes, f"{root}: no training file of a known kind is at {', '.join(patterns)}")
    if not known:
        raise BoomError(
            f"{root} holds no training file of a known kind. "
            f"The hub's own conversion may have them: set 'revision: refs/convert/parquet'."
        )
    return _by_name(known, source, root)


def path_of(uri: str) -> str:
    """The path inside the bucket or the repository."""
    return hub_parts(uri)[3] if uri.startswith("hf://") else split(uri)[2]


def offline_identity(source: FilesSource) -> str | None:
    """What names a source of a hub without asking the hub; None for a source whose files are looked at."""
    if source.hub is not None:
        return f"{source.hub}@{source.revision} {source.subset} {source.split}"
    return source.path if source.path is not None and source.path.startswith("hf://") else None


def _wanted(entries: list[Entry], suffixes: Sequence[str], otherwise: str) -> list[Entry]:
    found = [e for e in entries if not suffixes or (_name(e).endswith(tuple(suffixes)) and _name(e)[0] != ".")]
    if not found:
        raise BoomError(f"{otherwise}.")
    return found


def _name(entry: Entry) -> str:
    return path_of(entry.uri).rpartition("/")[2]


def _expression(pattern: str) -> str:
    """A regular expression for a glob in which ``*`` stays inside a folder and ``**`` crosses them."""
    wild = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern.strip("/"))
    kinds = [wild.get(t) or (t.replace("[!", "[^", 1) if len(t) > 1 else re.escape(t)) for t in tokens]
    return "".join(kinds)


def _configs(entries: Sequence[Entry], root: str) -> list[dict[str, Any]]:
    """The ``configs`` in the front matter of a dataset's card; none where there is none."""
    card = next((e for e in entries if path_of(e.uri) == "README.md"), None)
    if card is None or card.size > _MOST_README:
        return []
    try:
        with open_file(card.uri, card.size) as stream:
            text = stream.read().decode("utf-8", errors="replace")
        head = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
        configs = (yaml.safe_load(head[1]) or {}).get("configs") if head else None
    except OSError as error:
        raise BoomError(str(error)) from None
    except (yaml.YAMLError, AttributeError):
        raise BoomError(f"{root}: the front matter of README.md is no YAML. Give the files as path: {root}/…") from None
    named = [c for c in configs or () if isinstance(c, dict) and c.get("config_name")]
    return [c for c in named if c.get("data_files") or c.get("data_dir")]


def _patterns(configs: Sequence[Mapping[str, Any]], source: FilesSource, root: str) -> list[str]:
    """The globs of the subset and split that the source names."""
    names = {str(c["config_name"]): c for c in configs}
    default = next((n for n, c in names.items() if c.get("default")), "default" if "default" in names else None)
    subset = source.subset or default or (next(iter(names)) if len(names) == 1 else None)
    if subset not in names:
        raise BoomError(f"{root}: {_choice('subset', source.subset, names)}")
    config = names[subset]
    files, folder = config.get("data_files"), str(config.get("data_dir") or "").strip("/")
    if files is None:
        return [f"{folder}/**"]
    splits = _splits(files)
    if source.split not in splits:
        raise BoomError(f"{root}: {_choice('split', source.split, splits)}")
    return [f"{folder}/{p}".strip("/").removeprefix("./") for p in splits[source.split]]


def _splits(files: Any) -> dict[str, list[str]]:
    """``data_files`` of a card, in any of its three forms: a glob, a list of them, a list of {split, path}."""
    if isinstance(files, str):
        return {"train": [files]}
    if all(isinstance(f, str) for f in files):
        return {"train": list(files)}
    return {str(f["split"]): [f["path"]] if isinstance(f["path"], str) else list(f["path"]) for f in files}


def _by_name(entries: list[Entry], source: FilesSource, root: str) -> list[Entry]:
    """Without a card: the folder named as the subset, then what has the split's name between non-letters."""
    if source.subset:
        inside = [e for e in entries if source.subset in path_of(e.uri).split("/")[:-1]]
        folders = {p for e in entries for p in path_of(e.uri).split("/")[:-1]}
        if not inside:
            raise BoomError(f"{root}: {_choice('subset', source.subset, sorted(folders))}")
        entries = inside
    found = [e for e in entries if _has_word(path_of(e.uri), source.split)]
    if found:
        return found
    if source.split == "train" and not any(_has_word(path_of(e.uri), word) for e in entries for word in _SPLIT_WORDS):
        return entries
    there = [word for word in _SPLIT_WORDS if any(_has_word(path_of(e.uri), word) for e in entries)]
    raise BoomError(f"{root}: {_choice('split', source.split, there)}")


def _has_word(path: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z])", path) is not None


def _choice(kind: str, given: str | None, known: Sequence[str] | Mapping[str, Any]) -> str:
    if given is None:
        return f"there are several {kind}s: set '{kind}' to one of {', '.join(known)}."
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"there {'is' if len(known) == 1 else 'are'} {', '.join(known)}."
    return f"no {kind} '{given}': {hint}"
