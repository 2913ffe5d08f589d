"""The parts of an update: its bag, its joint corpus, its identities, its weights, its cost, its recipe."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.chain import Version
from boom_ray.config import BoomError, Recipe, parse_recipe
from boom_ray.data.bag_rules import bag_rules
from boom_ray.data.bagging import Draw, Rows, bag_rows, dev_rows, draw, out_of_bag_rows, training_rows
from boom_ray.data.core import CURRENT, UPDATE, draw_again, draw_update, rows_behind
from boom_ray.data.known import Known, drop_known, write_known
from boom_ray.data.schema import Example, row_id
from boom_ray.ledger import Key
from boom_ray.plan import World, derive_keys
from boom_ray.search.points import Point, even_point
from boom_ray.update.costs import Spent, spent
from boom_ray.update.keys import Stand, Trained, UpdateKeys, derive_update, pair_keys, retrain_keys, training_keys
from boom_ray.update.union import join_corpora, join_counts, join_datasets
from boom_ray.update.weights import bounded, largest_step, mean_drift

DEV = (0.1, 10)


def make_rows(*counts: tuple[str, int], seed: int = 0) -> Rows:
    """Rows of datasets, one after another, with random ids; a name may come twice."""
    names = tuple(dict.fromkeys(name for name, _ in counts))
    ids = np.random.default_rng(seed).integers(0, 256, (sum(n for _, n in counts), 16), dtype=np.uint8)
    dataset = np.concatenate([np.full(n, names.index(name), np.int16) for name, n in counts])
    return Rows(ids, dataset, names)


def _grown(old: Rows, *counts: tuple[str, int], seed: int = 1) -> Rows:
    """Old rows and more of them, numbered after them."""
    more = make_rows(*counts, seed=seed)
    names = tuple(dict.fromkeys((*old.names, *more.names)))
    places = np.array([names.index(name) for name in more.names], np.int16)
    return Rows(np.concatenate([old.ids, more.ids]), np.concatenate([old.dataset, places[more.dataset]]), names)


def _run_draw(rows: Rows) -> Draw:
    return draw(rows, bag_rules(_recipe().bags), DEV, seed=3)


OLD = make_rows(("a", 400), ("b", 100))
BOTH = _grown(OLD, ("c", 60), ("a", 50))
N = len(OLD.dataset)


def _new_rows(rows: Rows, drawn: Draw) -> dict[str, np.ndarray]:
    return {name: where[where >= N] for name, where in training_rows(rows, drawn).items()}


@pytest.mark.parametrize("core", [0.0, 0.1, 0.4, 1.0])
def test_the_bag_holds_the_core_of_every_old_dataset_and_every_new_row(core):
    drawn = draw_update(BOTH, _run_draw(OLD), N, core, DEV)
    bag, train = bag_rows(BOTH, drawn, drawn.bags[UPDATE]), training_rows(BOTH, drawn)
    for name in ("a", "b"):
        old = train[name][train[name] < N]
        assert np.sum(bag[name] < N) == round(core * len(old))
    for name, new in _new_rows(BOTH, drawn).items():
        assert set(new) <= set(bag[name])
    assert set(out_of_bag_rows(BOTH, drawn, drawn.bags[UPDATE])["c"]) == set()
    assert rows_behind(BOTH, drawn, [drawn.bags[UPDATE]]) == sum(len(set(rows)) for rows in bag.values())


def test_old_dev_rows_stay_and_new_datasets_get_their_own():
    before = _run_draw(OLD)
    drawn = draw_update(BOTH, before, N, 0.4, DEV)
    for half in ("a", "b"):
        old, new = dev_rows(OLD, before, half), dev_rows(BOTH, drawn, half)
        for name in ("a", "b"):
            assert set(old[name]) == {row for row in new[name] if row < N}
        assert len(new["c"]) == 5
    every = {row for where in dev_rows(BOTH, drawn).values() for row in where}
    for bag in drawn.bags:
        assert not every & {row for where in bag_rows(BOTH, drawn, bag).values() for row in where}


def test_the_current_model_has_seen_all_old_rows():
    drawn = draw_update(BOTH, _run_draw(OLD), N, 0.4, DEV)
    train, bag = training_rows(BOTH, drawn), bag_rows(BOTH, drawn, drawn.bags[CURRENT])
    assert all(set(where[where < N]) <= set(bag[name]) for name, where in train.items())
    unseen = [out_of_bag_rows(BOTH, drawn, one) for one in drawn.bags]
    assert not any(set(unseen[0][name]) & set(unseen[1][name]) for name in BOTH.names)


def test_a_smaller_core_lies_in_a_larger_one():
    bags = []
    for core in (0.1, 0.2, 0.4):
        drawn = draw_update(BOTH, _run_draw(OLD), N, core, DEV)
        bags.append({row for where in bag_rows(BOTH, drawn, drawn.bags[UPDATE]).values() for row in where})
    assert bags[0] < bags[1] < bags[2]


def test_the_core_is_drawn_once():
    """The next update finds the same old rows in its core, and takes what was new by the same share."""
    first = draw_update(BOTH, _run_draw(OLD), N, 0.4, DEV)
    later = _grown(BOTH, ("d", 40), seed=2)
    second = draw_update(later, Draw.from_json(json.loads(json.dumps(first.to_json()))), len(BOTH.dataset), 0.4, DEV)
    old, new = (bag_rows(rows, d, d.bags[UPDATE]) for rows, d in ((BOTH, first), (later, second)))
    for name in ("a", "b"):
        assert {row for row in old[name] if row < N} == {row for row in new[name] if row < N}
    assert len(new["c"]) == round(0.4 * len(training_rows(later, second)["c"]))
    assert set(training_rows(later, second)["d"]) == set(new["d"])


def test_a_full_retrain_draws_from_all_rows_and_keeps_the_dev_rows():
    drawn = draw_update(BOTH, _run_draw(OLD), N, 0.4, DEV)
    rules = bag_rules(_recipe().bags)
    again = draw_again(BOTH, rules, drawn, 3, {})
    assert (again.dev_seed, again.dev) == (drawn.dev_seed, drawn.dev)
    train = training_rows(BOTH, again)
    for rule, bag in zip(rules, again.bags, strict=True):
        counted = {name: len(rows) for name, rows in bag_rows(BOTH, again, bag).items()}
        assert counted == {name: round(rule.ratio * len(where)) for name, where in train.items()}


def _example(dataset: str, query: str, *pos: str) -> Example:
    return Example(dataset, "retrieval", query, pos, (), None)


def test_rows_of_the_old_corpus_are_known_under_any_name(tmp_path):
    old = [row_id("a", "q1", ["p1"]), row_id("b", "q2", ["p2"])]
    write_known(np.frombuffer(b"".join(old), np.uint8).reshape(-1, 16), ["a", "b"], tmp_path)
    counts = {name: {"duplicates": 0} for name in ("a", "c")}
    examples = [
        _example("a", "q1", "p1"),  # the same row
        _example("c", "q2", "p2"),  # a row of b under a new name
        _example("c", "q1", "p2"),  # another pair
        _example("a", "q3", "p3"),
    ]
    assert drop_known(examples, Known.of(tmp_path), counts) == examples[2:]
    assert counts == {"a": {"duplicates": 1}, "c": {"duplicates": 1}}
    assert drop_known(examples, Known.of(tmp_path / "nowhere"), counts) == examples


def _entry(name: str, rows: int, **changes: Any) -> dict[str, Any]:
    rules = {"task_type": "retrieval", "instruction": {"query": "", "passage": ""}, "loss": "infonce"}
    return {"name": name, "rows": rows, **rules, "symmetric": False, **changes}


def test_joint_datasets_keep_the_old_places():
    joined = join_datasets([_entry("a", 10), _entry("b", 5)], [_entry("c", 2), _entry("a", 3)])
    assert [(entry["name"], entry["rows"]) for entry in joined] == [("a", 13), ("b", 5), ("c", 2)]
    for rule, value in (("loss", "cosent"), ("instruction", {"query": "ask: ", "passage": ""}), ("symmetric", True)):
        with pytest.raises(BoomError, match=rule):
            join_datasets([_entry("a", 10)], [_entry("a", 3, **{rule: value})])


def test_counts_add_up():
    joined = join_counts({"a": {"rows_in": 5, "rows": 4}}, {"a": {"rows_in": 2, "rows": 2}, "b": {"rows_in": 1}})
    assert joined == {"a": {"rows_in": 7, "rows": 6}, "b": {"rows_in": 1}}


def test_a_joint_corpus_links_the_shards_of_both(small_corpus, tmp_path):
    counts = {name: {"rows_in": 1, "rows": 1} for name in ("ask", "sort", "group", "alike")}
    old = tmp_path / "old"
    old.mkdir()
    for file in small_corpus.iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    (old / "counts.json").write_text(json.dumps(counts))
    out = tmp_path / "joint"
    out.mkdir()
    join_corpora(old, old, out)
    names = sorted(p.name for p in out.glob("rows-*"))
    assert names == [f"rows-{i:05d}.arrow" for i in range(4)]
    assert (out / names[2]).samefile(old / "rows-00000.arrow")
    assert [entry["rows"] for entry in json.loads((out / "datasets.json").read_text())] == [120, 80, 60, 60]


RAW: dict[str, Any] = {
    "name": "r",
    "base": {"build": {"layers": 1}},
    "corpus": {"datasets": [{"path": "a/*.jsonl", "name": "a"}]},
    "bags": {"ratios": [0.5, 1.0]},
    "update": {"datasets": [{"path": "new.jsonl"}]},
}
WORLD = World(sources=([["new.jsonl", "77"]],), base=None, sets=(["s", "11"],))


def _recipe(*changes: tuple[str, Any]) -> Recipe:
    raw = copy.deepcopy(RAW)
    for path, value in changes:
        node: Any = raw
        *parents, last = path.split(".")
        for part in parents:
            node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
        node[last] = value
    return parse_recipe(raw)


RUN = derive_keys(_recipe(), World(sources=([["a.jsonl", "00"]],), base=None, sets=()))
STAND = Stand(
    version=Version(RUN.published, 1.0, {}),
    model=RUN.merges["searched"],
    score_name="merge-searched",
    corpus=RUN.corpus,
    tokens=RUN.tokens,
    bags=RUN.bags,
    behind=900,
    members=tuple(Trained(key, 450) for key in RUN.members),
    scores={"base": RUN.scores["base"], "current": RUN.scores["merge-searched"]},
    trained=("a",),
)


def _update_keys(*changes: tuple[str, Any], stand: Stand = STAND, world: World = WORLD) -> UpdateKeys:
    recipe = _recipe(*changes)
    assert recipe.update is not None
    return derive_update(recipe, recipe.update, world, stand, RUN)


def _new(*changes: tuple[str, Any], **options: Any) -> set[str]:
    before, after = _update_keys(), _update_keys(*changes, **options)
    names = [f.name for f in fields(UpdateKeys) if isinstance(getattr(before, f.name), Key)]
    return {name for name in names if getattr(before, name) != getattr(after, name)}


DATA = {"fresh", "corpus", "tokens", "bags"}
MEMBER = {"member", "candidate", "everyone", "ensemble"}
PAIR = {"pair", "search"}
LAST = {"bound", "merge", "drift", "published"}


def test_the_same_update_has_the_same_artifacts():
    assert _new() == set()
    assert _new(("update.datasets.0.path", "/elsewhere/new.jsonl")) == set()
    assert _new(("update.weights", "fixed"), ("update.core", 0.4)) == set()


@pytest.mark.parametrize(
    ("path", "value", "new"),
    [
        ("update.core", 0.2, {"bags", *MEMBER, *PAIR, *LAST}),
        ("update.init", "current", {*MEMBER, *PAIR, *LAST}),
        ("update.weights", "mass", LAST),
        ("update.weights", "ensemble", {"candidate", *PAIR, *LAST}),
        ("update.share", 0.3, LAST),
        ("update.max_drift", 0.1, LAST),
        ("update.probe", 9, set()),
        ("train.batch_size", 8, {*MEMBER, *PAIR, *LAST}),
        ("search.trials", 99, {"search"}),
        ("merge", {"weights": "ratio", "scale": 0.8}, {"ensemble"}),
        ("evaluate.cap", 10, {"drift", "published"}),
        ("evaluate.precision", "bfloat16", {"drift", "published"}),
    ],
)
def test_what_a_change_makes_new(path, value, new):
    assert _new((path, value)) == new


def test_other_data_and_another_parent_make_all_new():
    everything = {*DATA, *MEMBER, *PAIR, *LAST}
    assert _new(world=replace(WORLD, sources=([["new.jsonl", "78"]],))) == everything
    assert _new(stand=replace(STAND, corpus=Key("corpus", "r", "other"))) >= DATA


def test_a_stand_reads_back_equal():
    raw = json.loads(json.dumps(STAND.to_json()))
    assert Stand.from_json(STAND.version, raw) == STAND


def test_keys_of_the_pair_and_of_the_training():
    keys = _update_keys(("update.init", "current"))
    recipe = _recipe(("update.init", "current"))
    assert recipe.update is not None
    pair, training = pair_keys(keys, STAND, RUN, 0.4), training_keys(keys, STAND, RUN, recipe.update)
    assert list(pair.ensemble.values()) == [STAND.model, keys.member]
    assert (pair.base, training.base) == (RUN.base, STAND.model)
    assert pair.models == {"base": RUN.base, "merge-searched": STAND.model, "v2-member": keys.member, "v2": keys.merge}
    again = retrain_keys(recipe, keys, RUN, WORLD)
    assert (again.tokens, again.base) == (keys.tokens, RUN.base)
    assert not set(again.members) & set(RUN.members)


def test_the_step_of_a_bounded_merge():
    target = even_point("linear", (0.5, 0.5), scale=1.2)
    assert bounded(target, 1.0) == target
    assert bounded(target, 0.0) == Point("linear", {"all": (1.0, 0.0)}, 1.0)
    half = bounded(target, 0.5)
    assert half.weights["all"] == pytest.approx((0.75, 0.25))
    assert half.scale == pytest.approx(1.1)


@given(st.floats(0.01, 5.0), st.floats(0.5, 3.0), st.floats(0.01, 0.9))
def test_the_largest_step_is_within_the_bound_and_no_thousandth_larger(height, power, limit):
    def drift(step: float) -> float:
        return height * step**power

    if drift(1 / 1024) > limit:
        with pytest.raises(BoomError, match="max_drift"):
            largest_step(drift, limit)
        return
    step, found = largest_step(drift, limit)
    assert found == drift(step) <= limit
    assert step == 1.0 or drift(step + 1 / 1024) > limit


def test_drift_is_the_mean_of_one_minus_the_cosine():
    one = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    assert mean_drift(one, one) == pytest.approx(0.0, abs=1e-7)
    assert mean_drift(one, one[::-1]) == pytest.approx(0.4)


def test_costs_count_what_was_held_and_not_what_was_linked():
    manifest = {"started": 0.0, "finished": 10.0, "bytes": 500, "meta": {"devices": "all", "tokens": 7}}
    assert spent(manifest, 4) == Spent(40.0, 7, 500)
    joint = {**manifest, "meta": {"tokens": 70, "added": {"tokens": 9}}}
    assert spent(joint, 4, manifest) == Spent(10.0, 9, 0)
    member = {**manifest, "meta": {"started": 2.0, "finished": 8.0, "idle": 1.0, "width": 2, "tokens": 5}}
    assert spent(member, 4) + Spent(1.0) == Spent(11.0, 5, 500)
    assert Spent(2.0, 4, 6).times(0.5) == Spent(1.0, 2, 3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"core": 1.5}, "update.core"),
        ({"core": -0.1}, "update.core"),
        ({"share": 0}, "update.share"),
        ({"weights": "half"}, "update.weights"),
        ({"init": "last"}, "update.init"),
        ({"max_drift": 0}, "update.max_drift"),
        ({"datasets": []}, "update.datasets"),
        ({"dataset": []}, "datasets"),
    ],
)
def test_a_wrong_setting_is_named(changes, told):
    raw = copy.deepcopy(RAW)
    raw["update"].update(changes)
    with pytest.raises(BoomError, match=told):
        parse_recipe(raw)


def _message(folder: Path, text: str, **options: Any) -> str:
    from boom_ray.update.task import load_job

    (folder / "update.yaml").write_text(text)
    with pytest.raises(BoomError) as caught:
        load_job(folder / "update.yaml", (), options.get("run_dir"), print)
    return str(caught.value)


def test_an_update_without_data_or_model_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BOOM_RAY_HOME", raising=False)
    new = "update: {datasets: [{path: new.jsonl}]"
    assert "names no new data" in _message(tmp_path, "name: r\n")
    assert "which model" in _message(tmp_path, new + "}\n")
    assert "no run directory" in _message(tmp_path, "name: r\n" + new + "}\n")
    assert "does not exist" in _message(tmp_path, new + ", model: nowhere}\n")
    (tmp_path / "plain").mkdir()
    assert "in no run directory" in _message(tmp_path, new + ", model: plain}\n")
