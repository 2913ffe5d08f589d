"""Reading a recipe: YAML, ``dotted.key=value`` overrides, ``${VAR}``, names of the catalogue, then the check."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from boom_ray import catalogue
from boom_ray.config import BoomError, Recipe, parse_recipe


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``dotted.key=value`` overrides.

    Raises:
        BoomError: a missing file, bad YAML, an unknown key (with the nearest valid one), a wrong value, or an
            unset ``${VAR}``, or a name that the catalogue does not have.
    """
    raw = fill_environment(apply_overrides(read_yaml(path), overrides))
    return parse_recipe(with_catalogue(raw), origin=str(path))


def with_catalogue(raw: dict[str, Any]) -> dict[str, Any]:
    """The names of the catalogue among the datasets, filled in; ``raw`` changes."""
    for section in ("corpus", "update"):
        if isinstance(raw.get(section), dict) and "datasets" in raw[section]:
            raw[section]["datasets"] = catalogue.expand(raw[section]["datasets"])
    return raw


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        BoomError: missing file, bad YAML, or no mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise BoomError(f"recipe {file} does not exist. Recipes that come with boom_ray are in jobs/recipes/.")
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BoomError(f"recipe {file} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise BoomError(f"recipe {file} must be a mapping of keys to values, got {type(raw).__name__}.")
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``raw`` with ``dotted.key=value`` overrides applied in order; the value is read as YAML.

    Raises:
        BoomError: no ``=``, a value that is no YAML, an index out of range, or a key below a plain value.
    """
    changed = copy.deepcopy(raw)
    for override in overrides:
        _apply_override(changed, override)
    return changed


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise BoomError(f"--set {override!r}: expected dotted.key=value, for example train.epochs=2.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BoomError(f"--set {override!r}: the value is not valid YAML: {error}") from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML 1.1 reads 5e-5 as text; people mean a number
    *parents, last = key.strip().split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list):
            node = node[_index(part, node, override)]
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict | list):
            raise BoomError(f"--set {override!r}: '{part}' is a value, it has no keys.")
    if isinstance(node, list):
        node[_index(last, node, override)] = value
    else:
        node[last] = value


def _index(part: str, node: list[Any], override: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise BoomError(f"--set {override!r}: '{part}' must be an index from 0 to {len(node) - 1}.")
    return int(part)


def fill_environment(node: Any, where: str = "") -> Any:
    """``${VAR}`` in every text of ``node``, filled in.

    Raises:
        BoomError: a variable that is not set.
    """
    if isinstance(node, dict):
        return {k: fill_environment(v, f"{where}.{k}" if where else str(k)) for k, v in node.items()}
    if isinstance(node, list):
        return [fill_environment(v, f"{where}.{i}") for i, v in enumerate(node)]
    if not isinstance(node, str):
        return node

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if not os.environ.get(name):
            raise BoomError(
                f"key '{where}' uses ${{{name}}}, but the environment variable {name} is not set. "
                f"Set it, or give the value with --set {where}=..."
            )
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", fill, node)
