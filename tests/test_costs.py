"""What a plan says a member will take is what its schedule then is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest

from boom_ray.config import Recipe, ScheduleName, parse_recipe
from boom_ray.costs import estimate
from boom_ray.data.accounts import PLACES
from boom_ray.data.bagging import bag_rows, draw
from boom_ray.data.membership import corpus_rows, counts
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys, World, derive_keys
from boom_ray.train.work import member_work

WORLD = World(
    ("x",), None, (), (("ask", "retrieval"), ("sort", "classification"), ("group", "clustering"), ("alike", "sts"))
)


def _recipe(train: dict[str, Any], bags: dict[str, Any]) -> Recipe:
    corpus = {"datasets": [{"path": "x"}], "dev": {"min_rows": 3}}
    return parse_recipe({"name": "r", "base": {"build": {}}, "corpus": corpus, "bags": bags, "train": train})


def _fill(ledger: Ledger, keys: Keys, recipe: Recipe, tokens: Path) -> None:
    """Corpus counts, tokens and bags, as the pipeline leaves them."""
    with ledger.stage(keys.tokens) as stage:
        shutil.copytree(tokens, stage.path, dirs_exist_ok=True)
    datasets = json.loads((tokens / "datasets.json").read_text())
    with ledger.stage(keys.corpus) as stage:
        told = {d["name"]: {"rows_in": d["rows"] + 2, "rejected": 2, "rows": d["rows"]} for d in datasets}
        (stage.path / "counts.json").write_text(json.dumps(told))
        (stage.path / "datasets.json").write_text(json.dumps(datasets))
    rows = corpus_rows(ledger.path(keys.tokens))
    drawn = draw(rows, keys.rules, (0.02, 3), recipe.seed)
    with ledger.stage(keys.bags) as stage:
        (stage.path / "draw.json").write_text(json.dumps(drawn.to_json()))
        (stage.path / "counts.json").write_text(json.dumps(counts(rows, drawn)))


KINDS: list[dict[str, Any]] = [
    {"ratios": [0.4, 1.0]},
    {"ratios": [0.4, 1.0], "kind": "bootstrap"},
    {"ratios": [0.4, 1.0], "kind": "bootstrap", "resample": "multinomial", "temperature": 2.0},
    {"kind": "dataset"},
    {"kind": "task_type", "ratios": [0.5]},
    {"kind": "groups", "groups": {"one": ["ask", "sort"], "two": ["group", "alike", "ask"]}},
]
RUNS = [{"tail": "keep"}, {"tail": "drop", "epochs": 3}, {"epochs": 3, "max_steps": 5}]


@pytest.mark.parametrize("bags", KINDS, ids=lambda b: b.get("kind", "subset") + b.get("resample", ""))
@pytest.mark.parametrize("name", get_args(ScheduleName))
@pytest.mark.parametrize("train", RUNS, ids=["keep", "drop", "cut"])
def test_steps_and_rows_of_members_are_exact(small_tokens: Path, tmp_path, bags, name, train):
    recipe = _recipe({"batch_size": 14, "schedule": name, **train}, bags)
    ledger, keys = Ledger.open(tmp_path / "run", "r"), derive_keys(recipe, WORLD)
    told = estimate(recipe, ledger, keys)
    assert (told["member-0"].steps, told["member-0"].rows) == (train.get("max_steps"), None)  # nothing is guessed
    _fill(ledger, keys, recipe, small_tokens)
    told = estimate(recipe, ledger, keys)
    assert len(keys.members) == {"dataset": 4, "task_type": 4}.get(bags.get("kind", ""), 2)
    rows, drawn = corpus_rows(small_tokens), draw(corpus_rows(small_tokens), keys.rules, (0.02, 3), recipe.seed)
    for index, bag in enumerate(drawn.bags):
        task, batches = member_work(recipe, ledger, keys, index)
        assert told[f"member-{index}"].steps == len(batches) == task.steps
        if "max_steps" not in train:
            assert told[f"member-{index}"].rows == sum(len(b.rows) for b in batches)
        inside = {n: set(r.tolist()) for n, r in bag_rows(rows, drawn, bag).items()}
        assert task.meta["per_dataset"] == {n: len(r) for n, r in inside.items()}
        assert task.meta["bag"] == keys.rules[index].label
        used = {row for batch in batches for row in batch.rows.tolist()}
        for place, (dataset, account) in enumerate(task.meta["accounts"].items()):
            assert account["rows_in"] == sum(account[p] for p in PLACES) == len(rows.of(place)) + 2
            assert account["used"] == len(used & inside[dataset]) == len(used & set(rows.of(place).tolist()))
            assert account["cut"] == 0 or "max_steps" in train
