"""`boom-ray corpus`: what is printed and written is what bags, schedule and shards say, counted by brute force."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from boom_ray.cli import app
from boom_ray.config import BoomError, parse_recipe
from boom_ray.data.accounts import PLACES
from boom_ray.data.bagging import bag_rows, draw
from boom_ray.data.batches import DrawSettings, local_feed, order_digest, run_digest
from boom_ray.data.lengths import token_lengths
from boom_ray.data.membership import corpus_rows, counts
from boom_ray.data.tokens import TokenStore
from boom_ray.ledger import Ledger
from boom_ray.plan import World, derive_keys
from boom_ray.train.rows import member_plan

RAW = {
    "name": "r",
    "base": {"build": {}},
    "corpus": {"datasets": [{"path": "x"}], "dev": {"min_rows": 3}},
    "bags": {"ratios": [0.4, 1.0]},
    "train": {"batch_size": 14, "tail": "drop"},
}


@pytest.fixture(scope="module")
def run(small_corpus: Path, small_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory up to its bags, as the pipeline leaves it; two rows of `ask` were bad, all of `bad`."""
    root = tmp_path_factory.mktemp("run") / "r"
    recipe, world = parse_recipe(RAW), World(("x",), None, ())
    ledger, keys = Ledger.open(root, "r"), derive_keys(recipe, world)
    ledger.write_text("recipe.yaml", recipe.to_yaml())
    ledger.write_text("world.json", json.dumps(dataclasses.asdict(world)))
    datasets = json.loads((small_tokens / "datasets.json").read_text())
    told = {d["name"]: {"rows_in": d["rows"], "rejected": 0, "rows": d["rows"]} for d in datasets}
    told["ask"] |= {"rows_in": told["ask"]["rows_in"] + 2, "rejected": 2}
    told["bad"] = {"rows_in": 5, "rejected": 5, "rows": 0}
    with ledger.stage(keys.corpus) as stage:
        shutil.copytree(small_corpus, stage.path, dirs_exist_ok=True)
        (stage.path / "counts.json").write_text(json.dumps(told))
    with ledger.stage(keys.tokens) as stage:
        shutil.copytree(small_tokens, stage.path, dirs_exist_ok=True)
        stage.meta.update(lengths=token_lengths(TokenStore(small_tokens)))
    rows = corpus_rows(small_tokens)
    drawn = draw(rows, keys.rules, (0.02, 3), recipe.seed)
    with ledger.stage(keys.bags) as stage:
        (stage.path / "draw.json").write_text(json.dumps(drawn.to_json()))
        (stage.path / "counts.json").write_text(json.dumps(counts(rows, drawn)))
    return root


def _call(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["corpus", *map(str, arguments)])
    if done.exception:
        raise done.exception
    return done.output


def test_inspect_counts_every_row_of_every_dataset_for_every_member(run, small_tokens, tmp_path):
    output = _call("inspect", run, "--json", tmp_path / "told.json")
    told = json.loads((tmp_path / "told.json").read_text())
    store = TokenStore(small_tokens)
    assert set(told["datasets"]) == {"ask", "sort", "group", "alike", "bad"}
    for index, name in enumerate(("ask", "sort", "group", "alike")):
        entry, rows = told["datasets"][name], store.take(np.flatnonzero(store.dataset == index))
        lengths = [len(r.query) + sum(map(len, r.pos)) + sum(map(len, r.neg)) for r in rows]
        assert (entry["tokens"], entry["longest"], entry["rows"]) == (sum(lengths), max(lengths), len(rows))
        assert sum(count for _, count in entry["histogram"]) == len(rows)
        for bound, count in entry["histogram"]:
            assert count == sum(bound / 2 < n <= bound for n in lengths)
        assert f"{entry['tokens']:,}" in output
    assert [m["name"] for m in told["members"]] == ["member-0", "member-1"]
    for member in told["members"]:
        for name, account in member["datasets"].items():
            assert account["rows_in"] == sum(account[p] for p in PLACES) == told["datasets"][name]["rows_in"]
    assert told["members"][0]["datasets"]["bad"]["rejected"] == 5
    assert "40 %" in output


def test_schedule_shows_the_order_that_the_member_is_fed(run, small_tokens, tmp_path):
    output = _call("schedule", run, "--member", 1, "--steps", 3, "--json", tmp_path / "told.json")
    told = json.loads((tmp_path / "told.json").read_text())
    recipe = parse_recipe(RAW)
    plan = member_plan(recipe, Ledger(run), derive_keys(recipe, World(("x",), None, ())), 1)
    fed = list(local_feed(plan.batches, TokenStore(small_tokens), DrawSettings(1, 1)))
    digests = [order_digest(b.row_keys) for b in fed]
    assert [s["digest"] for s in told["steps"]] == digests
    assert [(s["step"], s["dataset"], s["rows"]) for s in told["steps"]] == [
        (b.step, b.dataset, b.global_rows) for b in fed
    ]
    for name in ("ask", "sort", "group", "alike"):
        mine = [b for b in fed if b.dataset == name]
        shown = told["datasets"][name]
        assert (shown["steps"], shown["rows"]) == (len(mine), sum(b.global_rows for b in mine))
    assert told["totals"]["digest"] == run_digest(digests)
    assert told["totals"]["rows"] + told["totals"]["dropped"] == sum(
        d["train"] for d in _bags(run)["datasets"].values()
    )
    assert all(digest in output for digest in digests[:3])
    assert digests[3] not in output


def test_another_schedule_is_shown_without_a_run_of_it(run):
    output = _call("schedule", run, "--set", "train.schedule=two_stage", "--steps", 1000)
    assert "two_stage" in output
    assert "(own negatives only)" in output


def test_a_mixed_schedule_counts_the_rows_of_every_dataset(run, tmp_path):
    _call("schedule", run, "--member", 1, "--set", "train.schedule=example_shuffle", "--json", tmp_path / "told.json")
    told = json.loads((tmp_path / "told.json").read_text())
    assert {s["dataset"] for s in told["steps"]} == {"mixed"}
    for name, dataset in _bags(run)["datasets"].items():
        assert told["datasets"][name]["rows"] + told["datasets"][name]["dropped"] == dataset["train"]


def test_out_of_bag_rows_are_read_as_text(run, small_corpus, tmp_path):
    _call("out-of-bag", run, "--member", 0, "--json", tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    told = {name: d["members"][0]["out_of_bag"] for name, d in _bags(run)["datasets"].items()}
    assert {name: sum(r["dataset"] == name for r in rows) for name in told} == told
    drawn_ids = {r["id"] for r in rows}
    store = corpus_rows(next(run.glob("tokens/*")))
    recipe = parse_recipe(RAW)
    keys = derive_keys(recipe, World(("x",), None, ()))
    drawn = draw(store, keys.rules, (0.02, 3), recipe.seed)
    inside = {store.ids[r].tobytes().hex() for found in bag_rows(store, drawn, drawn.bags[0]).values() for r in found}
    assert not drawn_ids & inside
    assert all(store.ids[r["row"]].tobytes().hex() == r["id"] for r in rows)  # text and tokens have the same numbers
    printed = [json.loads(line) for line in _call("out-of-bag", run, "--dataset", "sort", "--limit", 2).splitlines()]
    assert printed == [r for r in rows if r["dataset"] == "sort"][:2]
    assert _call("out-of-bag", run, "--member", 1) == ""


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(BoomError, match="there is no member 7"):
        _call("schedule", run, "--member", 7)
    with pytest.raises(BoomError, match="no dataset 'zzz'"):
        _call("out-of-bag", run, "--dataset", "zzz")
    with pytest.raises(BoomError, match=r"world\.json"):
        _call("inspect", tmp_path)
    with pytest.raises(BoomError, match="has nothing to learn from"):
        _call("schedule", run, "--set", "train.batch_size=500")


def _bags(run: Path) -> dict:
    return json.loads(next(run.glob("bags/*/counts.json")).read_text())
