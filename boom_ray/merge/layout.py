"""Where every tensor of the output lies, decided before a byte is written: any process can write any tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.merge.headers import ITEM_BYTES, Tensor
from boom_ray.merge.shards import INDEX, SINGLE


@dataclass(frozen=True)
class Layout:
    """The output's files: where every tensor will lie, and each file's header; a pure function of its inputs."""

    tensors: Mapping[str, Tensor]
    headers: Mapping[str, bytes]
    sizes: Mapping[str, int]
    index: str | None


def plan_layout(tensors: Mapping[str, tuple[str, tuple[int, ...]]], shard_bytes: int) -> Layout:
    """Distribute tensors (name → type, shape, in order) over shards of at most ``shard_bytes`` (one tensor at least).

    Tensors ``FOLDER/name`` go to ``FOLDER/model.safetensors``; the others to ``model.safetensors``, or to numbered
    shards with an index.
    """
    root = [name for name in tensors if "/" not in name]
    shards: list[list[str]] = [[]]
    filled = 0
    for name in root:
        size = Tensor(name, *tensors[name], "", 0).bytes
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = {
        SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": s
        for i, s in enumerate(shards)
    }
    for name in tensors:
        if "/" in name:
            files.setdefault(f"{name.rpartition('/')[0]}/{SINGLE}", []).append(name)
    return _place(tensors, {file: names for file, names in files.items() if names}, sharded=len(shards) > 1)


def _place(tensors: Mapping[str, tuple[str, tuple[int, ...]]], files: Mapping[str, list[str]], sharded: bool) -> Layout:
    placed: dict[str, Tensor] = {}
    headers: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    weight_map: dict[str, str] = {}
    for file, names in files.items():
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # wide types first, so that every tensor lies at a multiple of its item size
        for name in sorted(names, key=lambda n: -ITEM_BYTES[tensors[n][0]]):
            tensor = Tensor(name, *tensors[name], file, end)
            entries[name.rpartition("/")[2]] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [end, end + tensor.bytes],
            }
            placed[name] = tensor
            end += tensor.bytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % 64)
        headers[file] = len(text).to_bytes(8, "little") + text
        sizes[file] = len(headers[file]) + end
        weight_map.update((n, file) for n in names if "/" not in n)
    final = {n: Tensor(n, t.dtype, t.shape, t.file, len(headers[t.file]) + t.offset) for n, t in placed.items()}
    total = sum(final[n].bytes for n in weight_map)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return Layout(final, headers, sizes, json.dumps(content, indent=2) + "\n" if sharded else None)


def preallocate(layout: Layout, directory: Path) -> None:
    """Create the output files with headers at their full size, so that any process can write any tensor in place.

    Raises:
        BoomError: the disk has not enough room.
    """
    for file, size in layout.sizes.items():
        path = directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, layout.headers[file], 0)
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
    if layout.index is not None:
        (directory / INDEX).write_text(layout.index, encoding="utf-8")
