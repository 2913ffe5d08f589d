"""Datasets by name: entries of public training sets, kept as YAML beside this file.

``{catalogue: english}`` or ``{catalogue: [nli, fever], cap: 1000}`` in ``corpus.datasets`` of a recipe stands for plain
entries; what else the item holds replaces their keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml

from boom_ray.config import BoomError

GROUPS: dict[str, tuple[str, ...]] = {"english": ("english",), "multilingual": ("multilingual",), "code": ("code",)}
GROUPS |= {"general": ("english", "multilingual", "code")}  # BOOM's General-Text-Data
_INSTRUCTION = "Instruct: {task}\nQuery: "


def expand(items: Any) -> Any:
    """``corpus.datasets`` with plain entries in the place of ``catalogue`` items; anything else is left as it is.

    Raises:
        BoomError: an unknown name (with the nearest one), or a name that is no text.
    """
    if not isinstance(items, list):
        return items
    expanded: list[Any] = []
    for item in items:
        if not isinstance(item, Mapping) or "catalogue" not in item:
            expanded.append(item)
            continue
        replaced = {key: value for key, value in item.items() if key != "catalogue"}
        asked = item["catalogue"] if isinstance(item["catalogue"], list) else [item["catalogue"]]
        expanded += [_source({**_entries()[name], **replaced}, replaced) for name in _names(asked)]
    return expanded


def names(group: str) -> tuple[str, ...]:
    """The datasets of a group, in the order of its files."""
    return tuple(name for file in GROUPS[group] for name in _file(file))


def mteb_tasks(datasets: Collection[str]) -> set[str]:
    """mteb's names of the tasks that these datasets train for, of those that the catalogue knows.

    A language at the end of a name is not looked at where the whole set is known: ``miracl_ja`` is ``miracl``.
    """
    known = _mteb()
    return {task for name in datasets for task in known.get(name, known.get(name.rpartition("_")[0], ()))}


def _names(asked: Sequence[Any]) -> list[str]:
    """Groups taken apart; each dataset once."""
    found: dict[str, None] = {}
    for name in asked:
        if name in GROUPS:
            found |= dict.fromkeys(names(name))
        elif name in _entries():
            found[name] = None
        else:
            known = [*GROUPS, *_entries()]
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"groups are {', '.join(GROUPS)}; see docs/data.md."
            raise BoomError(f"corpus.datasets: the catalogue has no '{name}': {hint}")
    return list(found)


@cache
def _mteb() -> dict[str, list[str]]:
    raw: dict[str, list[str]] = yaml.safe_load((resources.files(__name__) / "mteb.yaml").read_text("utf-8"))
    return raw


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return {name: entry for file in GROUPS["general"] for name, entry in _file(file).items()}


@cache
def _file(name: str) -> dict[str, dict[str, Any]]:
    """The entries of one file with its defaults, as a recipe would write them."""
    raw = yaml.safe_load((resources.files(__name__) / f"{name}.yaml").read_text("utf-8"))
    return {dataset: _entry(dataset, {**raw["defaults"], **entry}) for dataset, entry in raw["datasets"].items()}


def _entry(name: str, raw: dict[str, Any]) -> dict[str, Any]:
    instruction = _INSTRUCTION.format(task=raw.pop("task"))
    both = raw.pop("both_sides", False)
    raw["instruction"] = {"query": instruction, "passage": instruction if both else ""}
    return {"name": name, **raw}


def _source(entry: dict[str, Any], replaced: Mapping[str, Any]) -> dict[str, Any]:
    """The files are those of the item where it names some; else ``path`` of an entry lies inside its ``hub``."""
    if "path" not in entry:
        return entry
    address = f"hf://datasets/{entry['hub']}@{entry['revision']}/{entry['path']}"
    if "path" in replaced:
        address = replaced["path"]
    return {key: value for key, value in entry.items() if key not in ("hub", "revision", "split")} | {"path": address}
