"""Three tiny members over one base, and a draw that leaves rows out of all bags."""

from __future__ import annotations

import pytest

from boom_ray.data.bag_rules import BagRule
from boom_ray.data.bagging import draw
from boom_ray.data.batches import DrawSettings
from boom_ray.data.membership import corpus_rows
from boom_ray.merge.gram import gram
from boom_ray.search.coefficients import MergeSpec
from boom_ray.search.objective_rows import Source


@pytest.fixture(scope="module")
def spec(small_base, tmp_path_factory) -> MergeSpec:
    members = tuple(small_base(seed) for seed in (1, 2, 3))
    file = tmp_path_factory.mktemp("grams") / "grams.npz"
    gram(list(members), small_base(0)).save(file)
    return MergeSpec(members, small_base(0), file, "multislerp", task_vectors=True)


@pytest.fixture(scope="module")
def source(small_tokens) -> Source:
    rules = [BagRule("subset", ratio, stream) for stream, ratio in enumerate((0.3, 0.4, 0.5))]
    drawn = draw(corpus_rows(small_tokens), rules, (0.2, 16), 3)
    return Source(small_tokens, drawn, DrawSettings(17, 2), (0, 1, 2))
