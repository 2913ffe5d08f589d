"""Old and new rows as one corpus: shards of the old one are linked, only new rows are read, cleaned and tokenised.

Old rows keep their numbers and their places among the datasets, so a shard of either serves as it is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError

_RULES = ("task_type", "instruction", "loss", "symmetric")  # what a row was tokenised and is trained by
Entry = Mapping[str, Any]


def join_datasets(old: Sequence[Entry], new: Sequence[Entry]) -> list[dict[str, Any]]:
    """``datasets.json`` of both: the old entries first, in their order, with the rows of both.

    Raises:
        BoomError: new rows of an old dataset come with other rules.
    """
    joined = {entry["name"]: dict(entry) for entry in old}
    for entry in new:
        name = entry["name"]
        if name not in joined:
            joined[name] = dict(entry)
            continue
        for rule in _RULES:
            if joined[name][rule] != entry[rule]:
                raise BoomError(
                    f"new rows belong to dataset '{name}', which the corpus has with another '{rule}'. Give them "
                    f"another 'name' in update.datasets, or the same rule."
                )
        joined[name]["rows"] += entry["rows"]
    return list(joined.values())


def join_counts(old: Mapping[str, Mapping[str, int]], new: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """``counts.json`` of both."""
    joined = {name: dict(counts) for name, counts in old.items()}
    for name, counts in new.items():
        before = joined.get(name, {})
        joined[name] = {**before, **{key: before.get(key, 0) + number for key, number in counts.items()}}
    return joined


def join_corpora(old: Path, new: Path, out: Path) -> dict[str, Any]:
    """Write into ``out`` the corpus of the rows of both; returns its counts."""
    datasets = join_datasets(_read(old / "datasets.json"), _read(new / "datasets.json"))
    counts = join_counts(_read(old / "counts.json"), _read(new / "counts.json"))
    for number, shard in enumerate([*_shards(old, "rows"), *_shards(new, "rows")]):
        link(shard, out / f"rows-{number:05d}.arrow")
    (out / "datasets.json").write_text(json.dumps(datasets, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "counts.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return counts


def new_rows(corpus: Path, old_shards: int, folder: Path) -> Path:
    """A folder with only the new shards of a joint corpus, under their numbers, and the datasets of all."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for shard in _shards(corpus, "rows")[old_shards:]:
        link(shard, folder / shard.name)
    link(corpus / "datasets.json", folder / "datasets.json")
    return folder


def link_tokens(old: Path, out: Path) -> int:
    """Bring the token shards of an old corpus into ``out``; returns how many."""
    shards = _shards(old, "tokens")
    for shard in shards:
        link(shard, out / shard.name)
    return len(shards)


def count_shards(tokens: Path) -> int:
    return len(_shards(tokens, "tokens"))


def link(file: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no second names."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


def _shards(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}-*.arrow"))


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def dataset_names(folder: Path) -> Iterator[str]:
    """Of the datasets that have rows in a corpus."""
    yield from (entry["name"] for entry in _read(folder / "datasets.json") if entry["rows"])
