"""The mergekit recipe, read as it is: which method, members and parameters make each tensor.

Supported: ``models`` with ``parameters`` (scalar, list over layers, or list of ``{filter, value}``), ``base_model``,
``merge_method``, ``dtype``, ``out_dtype`` and ``parameters``; besides, ``scale`` in ``parameters`` moves any method's
result along (merged - base), and ``task_vectors: false`` keeps a method on raw weights although a base is named for it.
What is not supported is refused by name. Precedence and the meaning of lists follow mergekit's documentation: a list is
interpolated over the layers, tensors outside of layers take its first value.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boom_ray.config import BoomError

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_UNSUPPORTED = {
    "slices": "merging layer ranges",
    "modules": "merging modules one by one",
    "tokenizer_source": "tokenizer surgery (the members' tokenizers must be equal; remove the key)",
    "tokenizer": "tokenizer surgery (the members' tokenizers must be equal; remove the key)",
    "chat_template": "changing the chat template",
    "experts": "mixtures of experts",
    "gate_mode": "mixtures of experts",
}
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_MAX_CONFIG = 1 << 20


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class MergeRecipe(BaseModel):
    """A checked mergekit recipe. ``text`` is what is written beside the result."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    merge_method: str
    models: tuple[Model, ...] = Field(min_length=1)
    base_model: str | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    text: str = Field("", exclude=True)

    @property
    def out_type(self) -> str | None:
        """Stored type of the result, or None: each tensor's type in the first member."""
        name = self.out_dtype or self.dtype
        return None if name is None else _DTYPES[name]


def read_recipe(config: str | os.PathLike[str] | Mapping[str, Any] | MergeRecipe) -> MergeRecipe:
    """A recipe from a YAML file, a mapping, or as it is.

    Raises:
        BoomError: missing file, bad YAML, unknown or unsupported keys (by name), wrong values.
    """
    if isinstance(config, MergeRecipe):
        return config
    if isinstance(config, Mapping):
        return _check(dict(config), yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), "merge recipe")
    file = Path(config)
    try:
        if file.stat().st_size > _MAX_CONFIG:
            raise BoomError(f"merge recipe {file} is larger than {_MAX_CONFIG} bytes. Is it a recipe?")
        text = file.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
    except FileNotFoundError:
        raise BoomError(f"merge recipe {file} does not exist. Give the path of a mergekit YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise BoomError(f"merge recipe {file} is not valid YAML: {error}") from None
    return _check(raw, text, f"merge recipe {file}")


def _check(raw: Any, text: str, origin: str) -> MergeRecipe:
    if not isinstance(raw, dict):
        raise BoomError(f"{origin} must be a mapping with merge_method and models.")
    for key in raw:
        if key in _UNSUPPORTED:
            raise BoomError(f"{origin}: '{key}' is not supported: boom_ray does no {_UNSUPPORTED[key]}.")
        if key not in MergeRecipe.model_fields or key == "text":
            near = difflib.get_close_matches(str(key), [*MergeRecipe.model_fields], n=1)
            raise BoomError(f"{origin}: unknown key '{key}'" + (f": did you mean '{near[0]}'?" if near else "."))
    try:
        recipe = MergeRecipe.model_validate({**raw, "text": text})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BoomError(f"{origin}: key '{where}': {first['msg']}.") from None
    for name in (recipe.dtype, recipe.out_dtype):
        if name is not None and name not in _DTYPES:
            raise BoomError(f"{origin}: dtype '{name}' is not one of float32, bfloat16, float16.")
    return recipe


@dataclass(frozen=True)
class Depth:
    """Where a tensor stands among the layers, as lists over layers need it: 0 for the first, 1 for the last."""

    layers: int

    @classmethod
    def of(cls, names: Iterator[str] | list[str]) -> Depth:
        found = [int(match.group(1)) for match in map(_LAYER.search, names) if match]
        return cls(max(found) + 1 if found else 0)

    def at(self, name: str) -> float:
        match = _LAYER.search(name)
        if match is None:
            return 0.0
        return int(match.group(1)) / (self.layers - 1) if self.layers > 1 else 1.0


def resolve(key: str, scopes: Sequence[Mapping[str, Any]], tensor: str, depth: float, origin: str) -> Any:
    """The value of parameter ``key`` for one tensor: the first scope that has one; None when none has."""
    for scope in scopes:
        if key in scope:
            value = _value(scope[key], tensor, depth, f"{origin}: parameter '{key}'")
            if value is not None:
                return value
    return None


def _value(setting: Any, tensor: str, depth: float, where: str) -> Any:
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return _scalar(setting, where)
    if not setting:
        return None
    if not any(isinstance(entry, dict) for entry in setting):
        return _over_layers([_scalar(entry, where) for entry in setting], depth)
    for entry in setting:
        if not isinstance(entry, dict) or "value" not in entry or not entry.keys() <= {"value", "filter"}:
            raise BoomError(f"{where}: a filtered list holds entries with 'value' and 'filter' only, got {entry!r}.")
        pattern = entry.get("filter")
        if pattern is None or pattern == "*" or str(pattern) in tensor:
            return _value(entry["value"], tensor, depth, where)
    return None


def _scalar(value: Any, where: str) -> Any:
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            raise BoomError(f"{where}: expected a number, got {value!r}.") from None
    if isinstance(value, bool | int | float):
        return value
    raise BoomError(f"{where}: expected a number, a list over layers or a filtered list, got {value!r}.")


def _over_layers(values: list[Any], depth: float) -> Any:
    if any(isinstance(value, bool) for value in values):
        return values[int(depth * (len(values) - 1))]
    place = depth * (len(values) - 1)
    low = int(place)
    high = min(len(values) - 1, low + 1)
    return (1 - (place - low)) * values[low] + (place - low) * values[high]
