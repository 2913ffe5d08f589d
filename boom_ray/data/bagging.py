"""Bags: which rows a member sees and how often, as a pure function of (row id, seed, what was frozen).

Subset: a row is in when the hash of its id and the bag's seed is at most a threshold. The threshold that gives exactly
the wanted share of each dataset is computed once, when the bag is drawn, and then frozen: rows that arrive later meet
the same threshold, so no old row ever changes its place. Bags of a partition lie between thresholds of one stream of
hashes. Poisson bootstrap: the hash decides how often a row is in, at a frozen rate. Multinomial bootstrap: an exact
number of draws over the rows that there are. Dev rows are chosen first, as a subset is, and are in no bag.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.data.bag_rules import BagKind, BagRule, check_rules, edges, shares

ALL = 2**64 - 1  # a threshold that every hash is under
NONE = -1  # one that no hash is under


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
        return NONE
    if count >= len(hashes):
        return ALL
    return int(np.partition(hashes, count - 1)[count - 1])


def under(hashes: np.ndarray, limit: int) -> np.ndarray:
    """Boolean [n]: which hashes are at most a threshold."""
    if limit < 0:
        return np.zeros(len(hashes), dtype=bool)
    return hashes <= np.uint64(limit)


def poisson_counts(hashes: np.ndarray, rate: float) -> np.ndarray:
    """int64 [n]: the Poisson(rate) quantile of each hash, read as a uniform number; depends on nothing else."""
    if rate <= 0:
        return np.zeros(len(hashes), dtype=np.int64)
    most = math.ceil(rate + 12 * math.sqrt(rate) + 30)  # beyond lies less than 2 ** -64
    terms = [math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) for k in range(most)]
    limits = [min(ALL, int(min(total, 1.0) * 2.0**64)) for total in np.cumsum(terms).tolist()]
    return np.searchsorted(np.array(limits, dtype=np.uint64), hashes, side="right").astype(np.int64)


def multinomial_counts(hashes: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """int64 [n], sum ``draws``: uniform draws with replacement; row order does not matter, hashes decide places."""
    if not len(hashes):
        return np.zeros(0, dtype=np.int64)
    counts = np.zeros(len(hashes), dtype=np.int64)
    drawn = np.random.default_rng(seed).integers(0, len(hashes), draws)
    counts[np.argsort(hashes, kind="stable")] = np.bincount(drawn, minlength=len(hashes))
    return counts


@dataclass(frozen=True)
class Bag:
    """One member's bag, frozen in the ledger.

    Attributes:
        shares: drawn rows / training rows, by dataset; the rate of a Poisson bootstrap.
        limits: by dataset: a subset's threshold, a multinomial's number of draws; 0 for Poisson.
        sizes: training rows that it was drawn from.
        since: number of the first row that is in the bag whatever its hash says, and so are all after it; None: none.
        floors: by dataset: of a partition, the threshold that its hashes lie above.
    """

    kind: BagKind
    ratio: float
    seed: int
    shares: Mapping[str, float]
    limits: Mapping[str, int]
    sizes: Mapping[str, int]
    since: int | None = None
    floors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """The frozen draw of a run: dev thresholds (half A, whole) by dataset, and one bag per member."""

    dev_seed: int
    dev: Mapping[str, tuple[int, int]]
    bags: tuple[Bag, ...]

    def to_json(self) -> dict[str, Any]:
        bags = [asdict(bag) for bag in self.bags]
        return {"dev_seed": self.dev_seed, "dev": {k: list(v) for k, v in self.dev.items()}, "bags": bags}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Draw:
        dev = {name: (int(a), int(whole)) for name, (a, whole) in raw["dev"].items()}
        return cls(raw["dev_seed"], dev, tuple(Bag(**bag) for bag in raw["bags"]))


@dataclass(frozen=True)
class Rows:
    """Ids (uint8 [n, 16]) and dataset index (int16 [n]) of a corpus, with the datasets' names."""

    ids: np.ndarray
    dataset: np.ndarray
    names: tuple[str, ...]

    def of(self, dataset: int) -> np.ndarray:
        """Row numbers of a dataset, ascending."""
        order, ends = self._by_dataset
        return order[ends[dataset] : ends[dataset + 1]]

    @cached_property
    def _by_dataset(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.dataset, kind="stable")
        return order, np.searchsorted(self.dataset[order], np.arange(len(self.names) + 1))


def dev_count(rows: int, fraction: float, min_rows: int) -> int:
    """Dev rows of a dataset: the fraction, at least ``min_rows``, never more than half of the dataset."""
    return min(max(round(fraction * rows), min_rows), rows // 2)


def draw(
    rows: Rows,
    rules: Sequence[BagRule],
    dev: tuple[float, int],
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> Draw:
    """Draw dev rows (``dev`` = fraction, minimum) and one bag per rule.

    Args:
        weights: factors on the shares of datasets that their sources bring.

    Raises:
        BoomError: a dataset is in no bag, or a rule names one that is not in the corpus.
    """
    check_rules(rules, rows.names)
    dev_seed = derive_seed(seed, "dev")
    dev_limits: dict[str, tuple[int, int]] = {}
    train: dict[str, np.ndarray] = {}
    for index, name in enumerate(rows.names):
        ids = rows.ids[rows.of(index)]
        hashes = membership_hash(ids, dev_seed)
        held_out = dev_count(len(ids), *dev)
        # an empty dev set stays empty for later rows, a whole one is impossible: dev_count is at most half
        dev_limits[name] = (threshold(hashes, held_out // 2), threshold(hashes, held_out))
        train[name] = ids[~under(hashes, dev_limits[name][1])]
    bags = (draw_bag(rule, train, derive_seed(seed, "bag", rule.stream), weights or {}) for rule in rules)
    return Draw(dev_seed, dev_limits, tuple(bags))


def draw_bag(rule: BagRule, train: Mapping[str, np.ndarray], seed: int, weights: Mapping[str, float]) -> Bag:
    """One bag from the ids of the training rows by dataset."""
    sizes = {name: len(ids) for name, ids in train.items() if rule.holds(name)}
    parts = shares(rule, sizes, weights)
    counts = {name: round(parts[name] * size) for name, size in sizes.items()}
    limits = dict.fromkeys(sizes, 0) if rule.kind == "poisson" else counts
    if rule.kind == "subset":
        limits = {name: threshold(membership_hash(train[name], seed), count) for name, count in counts.items()}
    if rule.kind == "partition":
        floors, limits = (
            {name: threshold(membership_hash(train[name], seed), round(ends[name] * n)) for name, n in sizes.items()}
            for ends in edges(rule, sizes, weights)
        )
        return Bag(rule.kind, rule.ratio, seed, parts, limits, sizes, floors=floors)
    return Bag(rule.kind, rule.ratio, seed, parts, limits, sizes)


def training_rows(rows: Rows, drawn: Draw) -> dict[str, np.ndarray]:
    """Row numbers by dataset, ascending, of all that are no dev rows."""
    chosen = {}
    for index, name in enumerate(rows.names):
        where = rows.of(index)
        dev = under(membership_hash(rows.ids[where], drawn.dev_seed), drawn.dev.get(name, (NONE, NONE))[1])
        chosen[name] = where[~dev]
    return chosen


def dev_rows(rows: Rows, drawn: Draw, half: str | None = None) -> dict[str, np.ndarray]:
    """Row numbers of the dev rows by dataset: half ``"a"``, half ``"b"``, or both."""
    chosen = {}
    for index, name in enumerate(rows.names):
        where = rows.of(index)
        hashes = membership_hash(rows.ids[where], drawn.dev_seed)
        first, whole = (under(hashes, limit) for limit in drawn.dev.get(name, (NONE, NONE)))
        mask = {"a": first, "b": whole & ~first, None: whole}[half]
        chosen[name] = where[mask]
    return chosen


def bag_rows(rows: Rows, drawn: Draw, bag: Bag) -> dict[str, np.ndarray]:
    """Row numbers in a bag by dataset, ascending; one that was drawn k times stands there k times. Dev rows: never.

    Raises:
        BoomError: a multinomial bag, and the corpus is not the one that it was drawn from.
    """
    train = training_rows(rows, drawn)
    return {name: np.repeat(where, _counts(rows.ids[where], where, name, bag)) for name, where in train.items()}


def out_of_bag_rows(rows: Rows, drawn: Draw, bag: Bag) -> dict[str, np.ndarray]:
    """Row numbers by dataset, ascending, of the training rows that a bag does not hold."""
    train = training_rows(rows, drawn)
    return {name: where[_counts(rows.ids[where], where, name, bag) == 0] for name, where in train.items()}


def _counts(ids: np.ndarray, where: np.ndarray, name: str, bag: Bag) -> np.ndarray:
    """How often each training row of a dataset (ids and row numbers) is in a bag."""
    counts = _drawn(ids, name, bag)
    if bag.since is not None:
        counts[where >= bag.since] = 1
    return counts


def _drawn(ids: np.ndarray, name: str, bag: Bag) -> np.ndarray:
    """What the hashes say; never, where the bag was drawn without that dataset."""
    if not bag.sizes.get(name):
        return np.zeros(len(ids), dtype=np.int64)
    hashes = membership_hash(ids, bag.seed)
    if bag.kind in ("subset", "partition"):
        inside = under(hashes, bag.limits[name]) & ~under(hashes, bag.floors.get(name, NONE))
        return inside.astype(np.int64)
    if bag.kind == "poisson":
        return poisson_counts(hashes, bag.shares[name])
    if len(ids) != bag.sizes[name]:
        raise BoomError(
            f"a multinomial bag was drawn from {bag.sizes[name]} rows of dataset '{name}', which now has {len(ids)}. "
            f"Set bags.resample to poisson: its counts hold for rows that come later, too."
        )
    return multinomial_counts(hashes, bag.limits[name], derive_seed(bag.seed, "multinomial", name))
