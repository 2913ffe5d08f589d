"""Identities: what a step reads names it, so a change makes new exactly what depends on it."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import pytest

from boom_ray.config import Recipe, parse_recipe
from boom_ray.ledger import Key
from boom_ray.plan import MERGES, Cost, Keys, World, derive_keys, member_seed, missing, steps

RAW: dict[str, Any] = {
    "name": "r",
    "base": {"build": {"layers": 1}},
    "corpus": {"datasets": [{"path": "a/*.jsonl", "name": "a"}, {"source": "python_environment"}]},
    "bags": {"ratios": [0.2, 0.6, 1.0]},
    "evaluate": {"sets": ["sets"]},
}
WORLD = World(sources=([["a.jsonl", "00"]], "environment"), base=None, sets=(["s", "11"],))
IMPORTED_WORLD = replace(WORLD, base="22")


def _recipe(*changes: tuple[str, Any], raw: dict[str, Any] = RAW) -> Recipe:
    changed = copy.deepcopy(raw)
    for path, value in changes:
        node: Any = changed
        *parents, last = path.split(".")
        for part in parents:
            node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
        node[last] = value
    return parse_recipe(changed)


IMPORTED = {**RAW, "base": {"model": "x"}}


def _named(keys: Keys) -> dict[str, Key]:
    """Every artifact of a run by a name of its own."""
    single = {f.name: value for f in fields(keys) if isinstance(value := getattr(keys, f.name), Key)}
    if keys.mined == keys.corpus:  # nothing is mined
        del single["mined"]
    merges = {f"merge-{name}": key for name, key in keys.merges.items()}
    scores = {f"score {name}": key for name, key in keys.scores.items()}
    return {**single, **{f"member-{i}": key for i, key in enumerate(keys.members)}, **merges, **scores}


def _changed(before: Keys, after: Keys) -> set[str]:
    old, new = _named(before), _named(after)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def _by(*changes: tuple[str, Any], raw: dict[str, Any] = RAW, world: World = WORLD) -> set[str]:
    return _changed(derive_keys(_recipe(raw=raw), world), derive_keys(_recipe(*changes, raw=raw), world))


FINAL = {*(f"merge-{m}" for m in MERGES), *(f"score merge-{m}" for m in MERGES), "published"}
SCORES = {"score base", *(f"score member-{i}" for i in range(3)), *(f"score merge-{m}" for m in MERGES)}
MEMBERS = {f"member-{i}" for i in range(3)} | {f"score member-{i}" for i in range(3)}
AFTER_MEMBERS = {"grams", "search"} | FINAL
AFTER_BASE = {"base", "score base"} | MEMBERS | AFTER_MEMBERS
EVERYTHING = {"corpus", "start", "tokens", "bags"} | AFTER_BASE


MINED = ("corpus.mine", {"models": ["m"], "ranks": [0, 50]})
MINERS = replace(WORLD, miners=("33",))


def test_mining_makes_another_corpus_of_the_same_rows_in_the_same_bags():
    plain, mined = derive_keys(_recipe(), WORLD), derive_keys(_recipe(MINED), MINERS)
    assert _changed(plain, mined) == EVERYTHING - {"corpus", "start", "bags"} | {"mined"}
    assert mined.mined.kind == "corpus"
    names = [step.name for step in steps(mined, lambda key: False, {})]
    assert names[:4] == ["corpus", "mine", "start", "tokens"]
    assert "mine" not in [step.name for step in steps(plain, lambda key: False, {})]


def test_mined_corpus_is_known_by_settings_and_by_what_the_models_hold():
    keys = derive_keys(_recipe(MINED), MINERS)
    moved = derive_keys(_recipe(MINED, ("corpus.mine.models", ["elsewhere/m"])), MINERS)
    assert _changed(keys, moved) == set()
    for changed in (
        derive_keys(_recipe(MINED, ("corpus.mine.share", 0.9)), MINERS),
        derive_keys(_recipe(MINED), replace(MINERS, miners=("44",))),
    ):
        assert _changed(keys, changed) == EVERYTHING - {"corpus", "start", "bags"} | {"mined"}


def test_all_artifacts_have_names_of_their_own():
    keys = _named(derive_keys(_recipe(), WORLD))
    assert set(keys) == EVERYTHING
    assert len({(k.kind, k.identity) for k in keys.values()}) == len(keys)
    assert len({(k.kind, k.name) for k in keys.values()}) == len(keys)


@pytest.mark.parametrize(("raw", "world"), [(RAW, WORLD), (IMPORTED, IMPORTED_WORLD)])
def test_the_same_recipe_and_world_give_the_same_keys(raw, world):
    again = World(tuple(world.sources), world.base, tuple(list(s) for s in world.sets))
    assert derive_keys(_recipe(raw=raw), world) == derive_keys(parse_recipe(_recipe(raw=raw).model_dump()), again)


@pytest.mark.parametrize("member", [0, 1, 2])
def test_a_changed_ratio_makes_new_one_member_and_what_reads_it(member):
    ratios = [0.2, 0.6, 1.0]
    ratios[member] = 0.3
    # the artifact "bags" holds the thresholds of all members, so it is drawn again (milliseconds)
    assert _by(("bags.ratios", ratios)) == {f"member-{member}", f"score member-{member}", "bags"} | AFTER_MEMBERS


GROUPED = {**RAW, "bags": {"kind": "dataset"}}
NAMED = replace(WORLD, datasets=(("a", "retrieval"), ("b", "sts"), ("c", "retrieval")))


def _grouped(*changes: tuple[str, Any]) -> set[str]:
    return _by(*changes, raw=GROUPED, world=NAMED)


def test_a_member_per_dataset_or_task_type():
    keys = derive_keys(_recipe(raw=GROUPED), NAMED)
    assert [rule.label for rule in keys.rules] == ["a", "b", "c"]
    assert len(keys.members) == 3
    assert [rule.label for rule in derive_keys(_recipe(("bags.kind", "task_type"), raw=GROUPED), NAMED).rules] == [
        "retrieval",
        "sts",
    ]
    # a factor on one dataset makes its member new, and no other
    changed = _grouped(("bags.dataset_ratios", {"b": 0.5}))
    assert changed == {"member-1", "score member-1", "bags"} | AFTER_MEMBERS
    assert _grouped(("bags.temperature", 2.0)) == {"bags"}  # one dataset is even with itself


def test_one_more_member_leaves_the_others():
    changed = _by(("bags.ratios", [0.2, 0.6, 1.0, 0.5]))
    assert changed == {"member-3", "score member-3", "bags"} | AFTER_MEMBERS


NOTHING = [
    [("resources.cpus_per_worker", 4), ("resources.gpus_per_worker", 0.5)],
    [("resources.max_width", 2), ("resources.max_concurrent", 1)],
    [("search.actors", 7)],
    [("corpus.datasets.0.path", "elsewhere/*.jsonl"), ("evaluate.sets", ["moved/sets"])],
    [("evaluate.chunk_tokens", 100)],
]


@pytest.mark.parametrize("changes", NOTHING)
@pytest.mark.parametrize("raw", [RAW, IMPORTED])
def test_where_and_how_wide_changes_nothing(changes, raw):
    assert _by(*changes, raw=raw) == set()


def test_texts_that_end_otherwise_make_new_all_that_reads_the_base():
    new = _by(("base.append_eos", True), raw=IMPORTED, world=IMPORTED_WORLD)
    assert {"start", "tokens", "member-0", "score base"} <= new
    assert not {"corpus", "bags"} & new
    assert _by(("base.append_eos", False), raw=IMPORTED, world=IMPORTED_WORLD) == set()


def test_the_place_of_a_base_changes_nothing():
    assert _by(("base.model", "/moved/x"), raw=IMPORTED, world=IMPORTED_WORLD) == set()


def test_a_changed_source_makes_new_the_corpus_and_all_after_it():
    other = replace(WORLD, sources=([["a.jsonl", "01"]], "environment"))
    assert _changed(derive_keys(_recipe(), WORLD), derive_keys(_recipe(), other)) == EVERYTHING
    recipe = _recipe(raw=IMPORTED)
    before = derive_keys(recipe, IMPORTED_WORLD)
    after = derive_keys(recipe, replace(IMPORTED_WORLD, sources=other.sources))
    # an imported base does not read the corpus; its score does, because the dev rows are other rows
    assert _changed(before, after) == EVERYTHING - {"start", "base"}


def test_a_changed_base_leaves_the_corpus_and_its_bags():
    recipe = _recipe(raw=IMPORTED)
    before, after = (derive_keys(recipe, replace(IMPORTED_WORLD, base=b)) for b in ("22", "33"))
    assert _changed(before, after) == EVERYTHING - {"corpus", "bags"}
    assert before.base == before.start


def test_changed_evaluation_sets_change_the_corpus_because_it_is_cleaned_of_them():
    other = replace(WORLD, sets=(["s", "12"],))
    assert _changed(derive_keys(_recipe(), WORLD), derive_keys(_recipe(), other)) == EVERYTHING


CHANGES = [
    ("seed", 3, EVERYTHING),
    ("corpus.max_rows_per_dataset", 10, EVERYTHING),
    ("base.max_tokens", 64, EVERYTHING - {"corpus", "bags"}),
    ("base.build.layers", 2, EVERYTHING - {"corpus", "bags"}),
    ("base.build.warm_steps", 3, AFTER_BASE),
    ("train.batch_size", 32, AFTER_BASE),
    ("corpus.dev.fraction", 0.1, AFTER_BASE | {"bags"}),
    # the first member's bag is the same: it is the one that the others lie around
    ("bags.nested", True, MEMBERS - {"member-0", "score member-0"} | AFTER_MEMBERS | {"bags"}),
    ("bags.temperature", 2.0, MEMBERS | AFTER_MEMBERS | {"bags"}),
    ("bags.dataset_ratios", {"a": 0.5}, MEMBERS | AFTER_MEMBERS | {"bags"}),
    ("bags.dataset_ratios", {"a": 1.0}, {"bags"}),  # says nothing new: no member trains again
    ("bags.kind", "bootstrap", MEMBERS | AFTER_MEMBERS | {"bags"}),
    ("bags.resample", "multinomial", {"bags"}),
    ("train.schedule", "two_stage", AFTER_BASE),
    ("resources.staging", "/disk", set()),
    ("search.trials", 99, {"search", "merge-searched", "score merge-searched", "published"}),
    ("search.scale", [1, 1], {"search", "merge-searched", "score merge-searched", "published"}),
    ("merge.method", "linear", FINAL | {"search"}),
    ("merge.weights", "ratio", {"published"}),
    ("evaluate.cap", 10, SCORES | {"published"}),
    ("evaluate.precision", "bfloat16", SCORES | {"published"}),
    ("evaluate.members", False, {f"score member-{i}" for i in range(3)} | {"published"}),
]


SCALED = FINAL - {"merge-searched", "score merge-searched"}


@pytest.mark.parametrize(("scale", "new"), [(0.8, SCALED), (1, set())])
def test_a_scale_makes_new_the_merges_that_it_moves(scale, new):
    raw = {**RAW, "merge": {"weights": "ratio"}}
    assert _by(("merge.scale", scale), raw=raw) == new


@pytest.mark.parametrize(("path", "value", "new"), CHANGES)
def test_what_a_change_makes_new(path, value, new):
    assert _by((path, value)) == new


def test_seeds_of_members_differ_and_do_not_depend_on_ratios():
    recipe, other = _recipe(), _recipe(("bags.ratios", [0.1]))
    seeds = [member_seed(recipe, i) for i in range(5)]
    assert len(set(seeds)) == 5
    assert member_seed(other, 0) == seeds[0]
    assert member_seed(_recipe(("seed", 18)), 0) != seeds[0]


def test_steps_are_in_order_and_done_as_the_ledger_says():
    keys = derive_keys(_recipe(), WORLD)
    present = {keys.corpus, keys.start, keys.members[1]}
    listed = steps(keys, present.__contains__, {"member-0": Cost(rows=5)})
    assert [s.name for s in listed] == [
        *("corpus", "start", "tokens", "bags", "warm base", "member-0", "member-1", "member-2", "gram", "search"),
        *(f"merge-{m}" for m in MERGES),
        *(f"score {name}" for name in ["base", *(f"member-{i}" for i in range(3)), *(f"merge-{m}" for m in MERGES)]),
        "publish",
    ]
    assert {s.name for s in listed if s.done} == {"corpus", "start", "member-1"}
    assert [s.name for s in missing(listed)] == [s.name for s in listed if s.key not in present]
    assert {s.name: s.cost for s in listed}["member-0"] == Cost(rows=5)
    assert {s.key for s in listed} == set(_named(keys).values())


def test_all_steps_are_done_once_the_model_is_published():
    keys = derive_keys(_recipe(), WORLD)
    assert missing(steps(keys, {keys.published}.__contains__, {})) == []


def test_an_imported_base_has_no_warm_up():
    keys = derive_keys(_recipe(raw=IMPORTED), IMPORTED_WORLD)
    assert "warm base" not in [s.name for s in steps(keys, lambda _: False, {})]
    cold = derive_keys(_recipe(("base.build.warm_steps", 0)), WORLD)
    assert cold.base == cold.start


def test_averages_are_scored_as_controls_and_merged_by_nobody():
    """They make members new, because these have to train again, but not the base; without them in the table they are
    made all the same."""
    settings = ("train.averages", {"ema": 0.99, "last": 4, "every": 5})
    before, after = derive_keys(_recipe(), WORLD), derive_keys(_recipe(settings), WORLD)
    names = [f"member-{i}-{average}" for i in range(3) for average in ("ema", "last4")]
    assert list(after.averages) == names
    assert len({key.identity for key in after.averages.values()}) == 6
    assert {name for name in after.scores if name in names} == set(names)
    assert all(after.models[name] == key for name, key in after.averages.items())
    assert set(after.ensemble.values()) == set(after.members)
    assert (before.averages, before.base) == ({}, after.base)
    assert all(old != new for old, new in zip(before.members, after.members, strict=True))
    one = derive_keys(_recipe(("train.averages", {"ema": None, "last": 2})), WORLD)
    assert list(one.averages) == [f"member-{i}-last2" for i in range(3)]
    hidden = derive_keys(_recipe(settings, ("evaluate.members", False)), WORLD)
    assert not set(names) & set(hidden.scores)
    assert hidden.averages == after.averages
    lost = derive_keys(_recipe(settings), WORLD, lost=(1,))
    assert list(lost.averages) == [name for name in names if "-1-" not in name]
