"""What the ledger says of the bags, counted by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from boom_ray.config import Bags
from boom_ray.data.bag_rules import bag_rules
from boom_ray.data.bagging import bag_rows, dev_rows, draw
from boom_ray.data.membership import corpus_rows, counts


def test_rows_of_a_tokenised_corpus(small_tokens):
    rows = corpus_rows(small_tokens)
    assert rows.names == ("ask", "sort", "group", "alike")
    assert [len(rows.of(i)) for i in range(4)] == [60, 40, 30, 30]
    assert rows.ids.shape == (160, 16)
    assert len(np.unique(rows.ids, axis=0)) == 160


@pytest.mark.parametrize("kind", ["subset", "bootstrap"])
def test_counts_by_brute_force(small_tokens, kind):
    rows = corpus_rows(small_tokens)
    drawn = draw(rows, bag_rules(Bags(ratios=(0.25, 0.5, 1.0), kind=kind)), (0.1, 5), 3)
    told = counts(rows, drawn)
    assert told["ratios"] == [0.25, 0.5, 1.0]
    bags = [bag_rows(rows, drawn, bag) for bag in drawn.bags]
    for index, name in enumerate(rows.names):
        entry = told["datasets"][name]
        a, b = (set(dev_rows(rows, drawn, half)[name].tolist()) for half in "ab")
        training = set(rows.of(index).tolist()) - a - b
        assert (entry["dev_a"], entry["dev_b"], entry["train"]) == (len(a), len(b), len(training))
        for member, bag in zip(entry["members"], bags, strict=True):
            mine = set(bag[name].tolist())
            assert member["in_bag"] == len(mine)
            assert member["drawn"] == len(bag[name])
            assert member["out_of_bag"] == len(training - mine)
            assert member["shared"] == [len(mine & set(other[name].tolist())) for other in bags]
        assert (entry["members"][-1]["out_of_bag"] == 0) == (kind == "subset")
