"""Bags: which rows a member sees, as a pure function of (row id, seed, threshold).

A row is in a bag when the hash of its id and the bag's seed is at most a threshold. The threshold that gives exactly
the wanted share of each dataset is computed once, when the bag is drawn, and then frozen: rows that arrive later meet
the same threshold, so no old row ever changes its place. Dev rows are chosen the same way first and are in no bag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_ALL = 2**64 - 1
_NONE = -1


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed named by its parts: independent streams for bags, schedules, draws and weights."""
    text = "\x1f".join(str(p) for p in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def membership_hash(ids: np.ndarray, seed: int) -> np.ndarray:
    """Uniform uint64 [n] of row ids (uint8 [n, 16]) under a seed; other seeds give independent values."""
    words = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)
    with np.errstate(over="ignore"):
        mixed = _mix(words[:, 0] ^ _mix(np.array([seed], dtype=np.uint64)))
        return _mix(mixed ^ words[:, 1])


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), a bijection of 64-bit words."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def threshold(hashes: np.ndarray, count: int) -> int:
    """The largest hash among the ``count`` smallest: ``hashes <= threshold`` holds for exactly ``count`` rows."""
    if count <= 0:
        return _NONE
    if count >= len(hashes):
        return _ALL
    return int(np.partition(hashes, count - 1)[count - 1])


def under(hashes: np.ndarray, limit: int) -> np.ndarray:
    """Boolean [n]: which hashes are at most a threshold."""
    if limit < 0:
        return np.zeros(len(hashes), dtype=bool)
    return hashes <= np.uint64(limit)


@dataclass(frozen=True)
class Bag:
    """One member's bag: ``thresholds`` by dataset name, frozen in the ledger."""

    ratio: float
    seed: int
    thresholds: Mapping[str, int]


@dataclass(frozen=True)
class Draw:
    """The frozen draw of a run: dev thresholds (half A, whole) by dataset, and one bag per member."""

    dev_seed: int
    dev: Mapping[str, tuple[int, int]]
    bags: tuple[Bag, ...]

    def to_json(self) -> dict[str, Any]:
        bags = [{"ratio": b.ratio, "seed": b.seed, "thresholds": dict(b.thresholds)} for b in self.bags]
        return {"dev_seed": self.dev_seed, "dev": {k: list(v) for k, v in self.dev.items()}, "bags": bags}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Draw:
        dev = {name: (int(a), int(whole)) for name, (a, whole) in raw["dev"].items()}
        return cls(raw["dev_seed"], dev, tuple(Bag(b["ratio"], b["seed"], b["thresholds"]) for b in raw["bags"]))


@dataclass(frozen=True)
class Rows:
    """Ids (uint8 [n, 16]) and dataset index (int16 [n]) of a corpus, with the datasets' names."""

    ids: np.ndarray
    dataset: np.ndarray
    names: tuple[str, ...]

    def of(self, dataset: int) -> np.ndarray:
        return np.flatnonzero(self.dataset == dataset)


def dev_count(rows: int, fraction: float, min_rows: int) -> int:
    """Dev rows of a dataset: the fraction, at least ``min_rows``, never more than half of the dataset."""
    return min(max(round(fraction * rows), min_rows), rows // 2)


def draw(rows: Rows, ratios: tuple[float, ...], nested: bool, dev: tuple[float, int], seed: int) -> Draw:
    """Draw dev rows (``dev`` = fraction, minimum) and one bag per ratio, exact for every dataset of ``rows``."""
    dev_seed = derive_seed(seed, "dev")
    dev_limits: dict[str, tuple[int, int]] = {}
    bag_seeds = [derive_seed(seed, "bag", 0 if nested else member) for member in range(len(ratios))]
    limits: list[dict[str, int]] = [{} for _ in ratios]
    for index, name in enumerate(rows.names):
        ids = rows.ids[rows.of(index)]
        hashes = membership_hash(ids, dev_seed)
        held_out = dev_count(len(ids), *dev)
        # an empty dev set stays empty for later rows, a whole one is impossible: dev_count is at most half
        dev_limits[name] = (threshold(hashes, held_out // 2), threshold(hashes, held_out))
        train = ids[~under(hashes, dev_limits[name][1])]
        for member, ratio in enumerate(ratios):
            count = round(ratio * len(train))
            limits[member][name] = threshold(membership_hash(train, bag_seeds[member]), count)
    bags = tuple(Bag(r, s, t) for r, s, t in zip(ratios, bag_seeds, limits, strict=True))
    return Draw(dev_seed, dev_limits, bags)


def dev_rows(rows: Rows, drawn: Draw, half: str | None = None) -> dict[str, np.ndarray]:
    """Row numbers of the dev rows by dataset: half ``"a"``, half ``"b"``, or both."""
    chosen = {}
    for index, name in enumerate(rows.names):
        where = rows.of(index)
        hashes = membership_hash(rows.ids[where], drawn.dev_seed)
        first, whole = (under(hashes, limit) for limit in drawn.dev.get(name, (_NONE, _NONE)))
        mask = {"a": first, "b": whole & ~first, None: whole}[half]
        chosen[name] = where[mask]
    return chosen


def bag_rows(rows: Rows, drawn: Draw, bag: Bag) -> dict[str, np.ndarray]:
    """Row numbers in a bag by dataset; dev rows are in none."""
    chosen = {}
    for index, name in enumerate(rows.names):
        where = rows.of(index)
        ids = rows.ids[where]
        dev = under(membership_hash(ids, drawn.dev_seed), drawn.dev.get(name, (_NONE, _NONE))[1])
        inside = under(membership_hash(ids, bag.seed), bag.thresholds.get(name, _NONE))
        chosen[name] = where[inside & ~dev]
    return chosen
