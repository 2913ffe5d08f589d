"""Tensors of the size of a real vocabulary: a float32 sum would be wrong by percents here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from boom_ray.merge.layout import plan_layout, preallocate
from boom_ray.merge.shards import open_checkpoint
from boom_ray.merge.stream import MergeOptions, merge

ELEMENTS = (151_936, 1024)  # the embedding of Qwen3-0.6B: 155.6 M elements, 622 MB


@pytest.mark.slow
def test_a_vocabulary_merged_with_itself_is_itself(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 3e9:
        pytest.skip("needs 3 GB of disk")
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    layout = plan_layout({"embed.weight": ("F32", ELEMENTS)}, 1 << 40)
    preallocate(layout, first)
    place = layout.tensors["embed.weight"]
    rng = np.random.default_rng(0)
    with open(first / place.file, "r+b") as stream:
        stream.seek(place.offset)
        for _ in range(0, place.size, 1 << 23):
            count = min(1 << 23, place.size - (stream.tell() - place.offset) // 4)
            stream.write((0.02 * rng.standard_normal(count, dtype=np.float32)).tobytes())
    os.link(first / place.file, second / place.file)
    models = [{"model": str(m), "parameters": {"weight": w}} for m, w in ((first, 0.2), (second, 0.7))]
    recipe = {"merge_method": "multislerp", "models": models}
    out = merge(recipe, tmp_path / "out", MergeOptions(memory="40MB", durable=False))
    ours, origin = open_checkpoint(out).view("embed.weight"), open_checkpoint(first).view("embed.weight")
    assert all((ours[k : k + 10**7] == origin[k : k + 10**7]).all() for k in range(0, place.size, 10**7))
