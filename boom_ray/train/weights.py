"""A member's weights on disk: whole, in float32, one tensor at a time, as sharded safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from boom_ray.merge.layout import plan_layout, preallocate

Shapes = Mapping[str, tuple[int, ...]]
SHARD_BYTES = 4_000_000_000


def write_weights(
    shapes: Shapes, tensors: Iterator[tuple[str, torch.Tensor]], directory: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write ``tensors`` (of the names and shapes of ``shapes``, in any order) into ``directory``.

    Where each one lies is known before the first comes, so no more than one is in memory here.
    """
    layout = plan_layout({name: ("F32", tuple(shape)) for name, shape in shapes.items()}, shard_bytes)
    preallocate(layout, directory)
    for name, tensor in tensors:
        place = layout.tensors[name]
        if tuple(tensor.shape) != place.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {place.shape}")
        content = memoryview(tensor.detach().float().contiguous().cpu().numpy().reshape(-1).view("u1").data)
        with open(directory / place.file, "r+b", buffering=0) as stream:
            done = 0
            while done < len(content):
                done += os.pwrite(stream.fileno(), content[done:], place.offset + done)
