"""Rows that an earlier corpus holds already: an update takes in what is new and counts the rest as duplicates.

A row is known when its query and positives are those of an old row, whatever its dataset is called now: its id is taken
under the name of every old dataset. So nothing of the old corpus is read but ids, 16 bytes a row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boom_ray.config import BoomError
from boom_ray.data.schema import Example, row_id

_IDS, _NAMES = "known.bin", "known.json"


class NothingNew(BoomError):
    """Every usable row is in an earlier corpus already."""


@dataclass(frozen=True)
class Known:
    """Ids (S16 [n], sorted) of earlier rows, and the names of their datasets."""

    ids: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> Known:
        """What :func:`write_known` wrote; nothing, where it did not."""
        if not (folder / _NAMES).is_file():
            return cls(np.empty(0, "S16"), ())
        size = (folder / _IDS).stat().st_size
        ids = np.memmap(folder / _IDS, dtype="S16", mode="r") if size else np.empty(0, "S16")
        return cls(ids, tuple(json.loads((folder / _NAMES).read_text("utf-8"))))


def write_known(ids: np.ndarray, names: Sequence[str], folder: Path) -> None:
    """Write ids (uint8 [n, 16]) of earlier rows, sorted, and the names of their datasets; each file by one rename."""
    ordered = np.sort(np.ascontiguousarray(ids).view("S16").ravel())
    for name, content in ((_IDS, ordered.tobytes()), (_NAMES, json.dumps(list(names)).encode())):
        temporary = folder / f"{name}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, folder / name)


def drop_known(examples: Sequence[Example], known: Known, counts: Mapping[str, dict[str, int]]) -> list[Example]:
    """The examples without those that are known, which are counted as duplicates of their dataset."""
    if not examples or not len(known.ids):
        return list(examples)
    names = [tuple(dict.fromkeys((e.dataset, *known.names))) for e in examples]
    ids = b"".join(row_id(name, e.query, e.pos) for e, own in zip(examples, names, strict=True) for name in own)
    found = _in_sorted(np.frombuffer(ids, "S16"), known.ids)
    starts = np.cumsum([0, *map(len, names)])[:-1]
    old = np.logical_or.reduceat(found, starts).tolist()
    for example, dropped in zip(examples, old, strict=True):
        if dropped:
            counts[example.dataset]["duplicates"] += 1
    return [example for example, dropped in zip(examples, old, strict=True) if not dropped]


def _in_sorted(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[places] == values)
