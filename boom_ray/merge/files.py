"""A model directory but for its weights: compared between members, then copied from the first, byte for byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError
from boom_ray.merge.headers import read_json

# what training and saving write without changing what the model computes
_IGNORED = {
    "config.json": {
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "_attn_implementation_autoset",
    },
    "config_sentence_transformers.json": {"__version__"},
    "tokenizer.json": {"truncation", "padding"},
}
_COMPARED = (
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
_BASE_COMPARED = ("config.json", "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
_NOT_COPIED = {
    *("README.md", "manifest.json", "boom_manifest.json", "_SUCCESS", "mergekit_config.yml", ".gitattributes"),
    *("trainer_state.json", "optimizer.pt", "scheduler.pt", "training_args.bin", "model.safetensors.index.json"),
}
_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
    ".ot",
    ".tflite",
    ".mlmodel",
)
_SKIPPED_FOLDERS = {"onnx", "openvino", "eval", "runs", ".git", ".cache"}


def check_files(members: Sequence[Path], base: Path | None) -> None:
    """Refuse members that are not the same model but for the weights.

    Raises:
        BoomError: names the file (and for JSON the key) in which a member or the base differs from the first member.
    """
    first = members[0]
    module_files = [
        str(f.relative_to(first)) for f in sorted(first.glob("*/config.json")) if f.parent.name not in _SKIPPED_FOLDERS
    ]
    for other in members[1:]:
        theirs = [
            str(f.relative_to(other))
            for f in sorted(other.glob("*/config.json"))
            if f.parent.name not in _SKIPPED_FOLDERS
        ]
        for name in dict.fromkeys([*_COMPARED, *module_files, *theirs]):
            _check_equal(name, first, other)
    if base is not None:
        for name in _BASE_COMPARED:
            if (base / name).is_file() and (first / name).is_file():
                _check_equal(name, first, base)


def _check_equal(name: str, first: Path, other: Path) -> None:
    ours, theirs = first / name, other / name
    if ours.is_file() != theirs.is_file():
        has, lacks = (ours, other) if ours.is_file() else (theirs, first)
        raise BoomError(
            f"{has} has no counterpart in {lacks}. Members must agree in pooling, modules, tokenizer and config."
        )
    if not ours.is_file() or ours.read_bytes() == theirs.read_bytes():
        return
    if not name.endswith(".json"):
        raise BoomError(f"{theirs} differs from {ours}. Members must have the same tokenizer and vocabulary.")
    difference = _difference(_comparable(ours, name), _comparable(theirs, name))
    if difference:
        raise BoomError(
            f"{theirs} differs from {ours} in {difference}. Members must agree in pooling, modules, tokenizer, "
            f"vocabulary and config; only their weights may differ."
        )


def _comparable(file: Path, name: str) -> Any:
    content = read_json(file)
    if isinstance(content, dict):
        ignored = _IGNORED.get(name, set())
        return {key: value for key, value in content.items() if key not in ignored}
    return content


def _difference(ours: Any, theirs: Any) -> str:
    if ours == theirs:
        return ""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
        shown = [f"'{k}' ({_short(ours.get(k))} / {_short(theirs.get(k))})" for k in keys[:3]]
        return ", ".join(shown) + (f" and {len(keys) - 3} more keys" if len(keys) > 3 else "")
    return f"its content ({_short(ours)} / {_short(theirs)})"


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def copy_files(source: Path, target: Path, skip: Callable[[str], bool] = lambda name: False) -> list[str]:
    """Copy a model directory's files other than weights, cards and training state; returns the relative names.

    Links that leave the directory are refused, unless they are the hub cache's own.
    """
    copied = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith(("checkpoint-", ".")))
        for name in sorted(names):
            relative = (Path(folder) / name).relative_to(source).as_posix()
            if name in _NOT_COPIED or name.endswith(_WEIGHTS) or name.startswith(".") or skip(relative):
                continue
            _check_link(source, Path(folder) / name)
            destination = target / relative
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / name, destination)
            copied.append(relative)
    return copied


def _check_link(source: Path, file: Path) -> None:
    home = source.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    target = file.resolve()
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise BoomError(f"{file} is a link that leaves the model directory. Refused: copy the file in its place.")
