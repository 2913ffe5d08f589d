"""Checkpoints whose index and shards disagree: refused by name, whatever the disagreement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from boom_ray.config import BoomError
from boom_ray.merge.shards import open_checkpoint

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def _sharded(folder: Path, first: set[str], second: set[str], weight_map: dict[str, str]) -> Path:
    folder.mkdir()
    for name, tensors in ((ONE, first), (TWO, second)):
        save_file({tensor: np.ones(4, np.float32) for tensor in tensors}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_and_index_that_agree_are_read(tmp_path: Path) -> None:
    found = open_checkpoint(_sharded(tmp_path / "m", {"a"}, {"b", "c"}, {"a": ONE, "b": TWO, "c": TWO}))
    assert set(found.tensors) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("first", "second", "weight_map", "told"),
    [
        ({"a"}, {"a", "b"}, {"a": ONE, "b": TWO}, rf"{TWO} holds 'a', which the index does not list there"),
        ({"a", "x"}, {"b"}, {"a": ONE, "b": TWO}, rf"{ONE} holds 'x', which the index does not list there"),
        ({"a"}, {"b"}, {"a": TWO, "b": ONE}, rf"{TWO} lacks 'a'|{ONE} lacks 'b'"),
        ({"a"}, {"b"}, {"a": ONE, "b": TWO, "c": "model-00003-of-00003.safetensors"}, "not there"),
    ],
    ids=["in two shards", "not listed", "swapped", "no such shard"],
)
def test_a_shard_that_is_not_as_its_index_says_is_refused(
    tmp_path: Path, first: set[str], second: set[str], weight_map: dict[str, str], told: str
) -> None:
    with pytest.raises(BoomError, match=told):
        open_checkpoint(_sharded(tmp_path / "m", first, second, weight_map))


def test_a_cut_shard_is_refused(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "m", {"a"}, {"b"}, {"a": ONE, "b": TWO})
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:-1])
    with pytest.raises(BoomError, match=TWO):
        open_checkpoint(folder)
