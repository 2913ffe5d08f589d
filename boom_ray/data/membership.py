"""What the ledger says of every bag: rows in, out-of-bag, overlap with other members; and the corpus' row ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.data.bagging import Draw, Rows, bag_rows, dev_rows
from boom_ray.data.tokens import TokenStore


def corpus_rows(tokens: Path) -> Rows:
    """Ids and datasets of a tokenised corpus."""
    store = TokenStore(tokens)
    return Rows(store.ids, store.dataset, tuple(d["name"] for d in store.datasets))


def counts(rows: Rows, drawn: Draw) -> dict[str, Any]:
    """Per dataset: dev rows (A, B) and training rows; per member and dataset: rows in, out-of-bag, and the rows
    shared with every other member."""
    halves = {half: dev_rows(rows, drawn, half) for half in ("a", "b")}
    bags = [bag_rows(rows, drawn, bag) for bag in drawn.bags]
    datasets = {}
    for index, name in enumerate(rows.names):
        dev_a, dev_b = len(halves["a"][name]), len(halves["b"][name])
        training = len(rows.of(index)) - dev_a - dev_b
        members = [
            {
                "in_bag": len(bag[name]),
                "out_of_bag": training - len(bag[name]),
                "shared": [len(np.intersect1d(bag[name], other[name], assume_unique=True)) for other in bags],
            }
            for bag in bags
        ]
        datasets[name] = {"dev_a": dev_a, "dev_b": dev_b, "train": training, "members": members}
    return {"ratios": [bag.ratio for bag in drawn.bags], "datasets": datasets}
