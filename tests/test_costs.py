"""What a plan says a member will take is what its schedule then is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from boom_ray.config import parse_recipe
from boom_ray.costs import estimate
from boom_ray.data.bagging import bag_rows, draw
from boom_ray.data.membership import corpus_rows, counts
from boom_ray.ledger import Ledger
from boom_ray.plan import World, derive_keys
from boom_ray.train.work import member_work, schedule, task_types

WORLD = World(("x",), None, ())


@pytest.mark.parametrize("tail", ["keep", "drop"])
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("max_steps", [None, 5])
def test_steps_and_rows_of_members_are_exact(small_tokens: Path, tmp_path, tail, epochs, max_steps):
    train = {"batch_size": 14, "tail": tail, "epochs": epochs, "max_steps": max_steps}
    corpus = {"datasets": [{"path": "x"}], "dev": {"min_rows": 3}}
    raw = {"name": "r", "base": {"build": {}}, "corpus": corpus, "bags": {"ratios": [0.4, 1.0]}, "train": train}
    recipe = parse_recipe(raw)
    ledger, keys = Ledger.open(tmp_path / "run", "r"), derive_keys(recipe, WORLD)
    assert estimate(recipe, ledger, keys)["member-0"].steps == max_steps  # nothing is known yet: nothing is guessed
    assert estimate(recipe, ledger, keys)["member-0"].rows is None
    with ledger.stage(keys.tokens) as stage:
        shutil.copytree(small_tokens, stage.path, dirs_exist_ok=True)
    rows = corpus_rows(ledger.path(keys.tokens))
    drawn = draw(rows, recipe.bags.ratios, False, (0.02, 3), recipe.seed)
    with ledger.stage(keys.bags) as stage:
        (stage.path / "draw.json").write_text(json.dumps(drawn.to_json()))
        (stage.path / "counts.json").write_text(json.dumps(counts(rows, drawn)))
    told = estimate(recipe, ledger, keys)
    for index, bag in enumerate(drawn.bags):
        types = task_types(ledger, keys)
        plan = schedule(recipe.train, types, bag_rows(rows, drawn, bag), 3)
        task, batches = member_work(recipe, ledger, keys, index)
        assert told[f"member-{index}"].steps == len(plan.batches) == len(batches) == task.steps
        if max_steps is None:
            assert told[f"member-{index}"].rows == sum(len(b.rows) for b in plan.batches)
