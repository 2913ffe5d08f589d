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
    """Per dataset: dev rows (A, B) and training rows; per member and dataset: distinct rows in the bag, draws (a row
    counts as often as it was drawn), rows out-of-bag, and the distinct rows shared with every other member."""
    halves = {half: dev_rows(rows, drawn, half) for half in ("a", "b")}
    bags = [bag_rows(rows, drawn, bag) for bag in drawn.bags]
    datasets = {}
    for index, name in enumerate(rows.names):
        dev_a, dev_b = len(halves["a"][name]), len(halves["b"][name])
        training = len(rows.of(index)) - dev_a - dev_b
        distinct = [np.unique(bag[name]) for bag in bags]
        members = [
            {
                "in_bag": len(own),
                "drawn": len(bag[name]),
                "out_of_bag": training - len(own),
                "shared": [len(np.intersect1d(own, other, assume_unique=True)) for other in distinct],
            }
            for bag, own in zip(bags, distinct, strict=True)
        ]
        datasets[name] = {"dev_a": dev_a, "dev_b": dev_b, "train": training, "members": members}
    return {"ratios": [bag.ratio for bag in drawn.bags], "datasets": datasets}
