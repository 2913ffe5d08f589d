"""The recipe: every mistake has its own message and the nearest valid key; what is written out reads back equal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import BoomError, Recipe, parse_recipe
from boom_ray.recipe import load_recipe

FILES: dict[str, Any] = {"path": "data/*.jsonl", "name": "mine", "task_type": "retrieval"}
ENVIRONMENT: dict[str, Any] = {"source": "python_environment"}
PLAIN: dict[str, Any] = {"name": "r", "base": {"model": "some/base"}, "corpus": {"datasets": [FILES, ENVIRONMENT]}}
BUILT: dict[str, Any] = {**PLAIN, "base": {"build": {}}}


def _with(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a recipe with one key set, however deep."""
    changed = copy.deepcopy(raw)
    node: Any = changed
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value
    return changed


def _error(raw: dict[str, Any]) -> str:
    with pytest.raises(BoomError) as caught:
        parse_recipe(raw)
    return str(caught.value)


def _write(folder: Path, raw: Any) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return file


MISTYPED = [
    ("nmae", "name"),
    ("tarin", "train"),
    ("base.modle", "model"),
    ("base.max_token", "max_tokens"),
    ("base.build.layer", "layers"),
    ("corpus.dataset", "datasets"),
    ("corpus.dev.fractoin", "fraction"),
    ("corpus.datasets.0.pth", "path"),
    ("corpus.datasets.0.task_typ", "task_type"),
    ("corpus.datasets.0.columns.positive", "pos"),
    ("corpus.datasets.0.instruction.passages", "passage"),
    ("corpus.datasets.1.max_function", "max_functions"),
    ("corpus.datasets.1.held_out_package", "held_out_packages"),
    ("bags.ratio", "ratios"),
    ("train.learning_rte", "learning_rate"),
    ("train.batchsize", "batch_size"),
    ("resources.gpus_per_workers", "gpus_per_worker"),
    ("merge.methods", "method"),
    ("search.trails", "trials"),
    ("evaluate.set", "sets"),
]


@pytest.mark.parametrize(("path", "nearest"), MISTYPED)
def test_a_mistyped_key_names_the_nearest_at_every_depth(path, nearest):
    message = _error(_with(BUILT, path, 1))
    assert f"unknown key '{path}': did you mean '{nearest}'?" in message


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("zzz", "base, bags, corpus, evaluate, merge, name, resources, search, seed, train"),
        ("corpus.datasets.1.zzz", "eval_documents"),
        ("corpus.datasets.0.zzz", "columns, instruction, name, path, source, task_type"),
    ],
)
def test_a_key_like_no_other_lists_the_valid_ones(path, known):
    message = _error(_with(BUILT, path, 1))
    assert f"unknown key '{path}': valid keys here: " in message
    assert all(key in message for key in known.split(", "))


def test_a_key_of_the_other_source_is_unknown():
    assert "unknown key 'corpus.datasets.1.path'" in _error(_with(PLAIN, "corpus.datasets.1.path", "x"))
    assert "unknown key 'corpus.datasets.0.max_functions'" in _error(_with(PLAIN, "corpus.datasets.0.max_functions", 9))


def test_all_mistakes_are_told_at_once():
    message = _error(_with(_with(BUILT, "tran", {}), "search.trails", 3))
    assert "'train'" in message
    assert "'trials'" in message


WRONG = [
    ("train.batch_size", "many", "train.batch_size"),
    ("train.batch_size", 1, "greater than or equal to 2"),
    ("train.epochs", 0, "train.epochs"),
    ("train.learning_rate", 0, "greater than 0"),
    ("train.learning_rate", float("nan"), "train.learning_rate"),
    ("train.learning_rate", float("inf"), "train.learning_rate"),
    ("train.precision", "float8", "train.precision"),
    ("train.zero_stage", 4, "train.zero_stage"),
    ("train", {"precision": "bfloat16", "zero_stage": 0}, "float32 copy of the weights"),
    ("train.schedule", "random", "batch_shuffle"),
    ("train", [], "train"),
    ("seed", -1, "seed"),
    ("seed", 2**31, "seed"),
    ("name", "../up", "name"),
    ("name", "", "name"),
    ("bags.ratios", 0.5, "bags.ratios"),
    ("bags.ratios", [], "bags.ratios"),
    ("bags.ratios", [0.5, 0.0], "above 0 and at most 1; got 0.0"),
    ("bags.ratios", [1.01], "above 0 and at most 1; got 1.01"),
    ("bags.ratios", [-0.5], "above 0 and at most 1; got -0.5"),
    ("bags.ratios", [float("nan")], "bags.ratios"),
    ("search.scale", [1.4, 0.7], "0 < low <= high"),
    ("search.scale", [0.0, 1.0], "0 < low <= high"),
    ("search.scale", [1.0], "search.scale"),
    ("merge.shard_size", "4 apples", "merge.shard_size"),
    ("merge.weights", "best", "merge.weights"),
    ("merge", {"weights": "ratio", "scale": 0}, "merge.scale"),
    ("merge.scale", 0.8, "search the scale, too"),
    ("corpus.datasets", [], "corpus.datasets"),
    ("corpus.datasets", "x.jsonl", "corpus.datasets"),
    ("corpus.datasets.0.task_type", "ranking", "corpus.datasets.0.task_type"),
    ("corpus.datasets.0.source", "file", "corpus.datasets.0"),
    ("corpus.max_bad_fraction", 1.1, "corpus.max_bad_fraction"),
    ("base.build.heads", 3, "must be a multiple of heads"),
    ("base.build.hidden", 4, "base.build.hidden"),
    ("base.model", "also/this", "exactly one of 'model'"),
    ("base.build", None, "exactly one of 'model'"),
]


@pytest.mark.parametrize(("path", "value", "told"), WRONG)
def test_a_wrong_value_is_refused_by_name(path, value, told):
    message = _error(_with(BUILT, path, value))
    assert told in message
    assert len(message.splitlines()) <= 3


def test_missing_keys_are_named():
    message = _error({})
    assert all(f"key '{key}' is missing." in message for key in ("name", "base", "corpus"))
    assert "give exactly one of 'path' (files) and 'hub'" in _error(_with(PLAIN, "corpus.datasets", [{}]))


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(BoomError, match=r"does not exist.*jobs/recipes"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(BoomError, match="does not exist"):
        load_recipe(tmp_path)
    for text, told in [("a: [1", "not valid YAML"), ("- 1", "must be a mapping"), ("", "must be a mapping")]:
        with pytest.raises(BoomError, match=told):
            load_recipe(_write(tmp_path, text))
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(BoomError, match="not valid YAML"):
        load_recipe(tmp_path / "latin.yaml")


def test_python_objects_in_yaml_are_refused_and_not_made(tmp_path):
    canary = tmp_path / "canary"
    for tag in (f"!!python/object/apply:os.mkdir [{canary}]", "!!python/object:boom_ray.config.Recipe {}"):
        with pytest.raises(BoomError, match="not valid YAML"):
            load_recipe(_write(tmp_path, f"name: {tag}\n"))
        with pytest.raises(BoomError, match="not valid YAML"):
            load_recipe(_write(tmp_path, PLAIN), [f"name={tag}"])
    assert not canary.exists()


OVERRIDES = [
    ("train.epochs=3", lambda r: r.train.epochs == 3),
    ("train.learning_rate=3e-5", lambda r: r.train.learning_rate == 3e-5),
    ("train.learning_rate=1E+0", lambda r: r.train.learning_rate == 1.0),
    ("train.max_steps=null", lambda r: r.train.max_steps is None),
    ("corpus.datasets.0.name=other", lambda r: r.corpus.datasets[0].name == "other"),
    ("corpus.datasets.1.max_functions=500", lambda r: r.corpus.datasets[1].max_functions == 500),
    ("corpus.dev.min_rows=7", lambda r: r.corpus.dev.min_rows == 7),
    ("bags.ratios=[0.5, 1]", lambda r: r.bags.ratios == (0.5, 1.0)),
    ("search.scale=[1, 1]", lambda r: r.search.scale == (1.0, 1.0)),
    ("evaluate.sets=[a, b]", lambda r: r.evaluate.sets == ("a", "b")),
    ("corpus.datasets.0.path=a=b", lambda r: r.corpus.datasets[0].path == "a=b"),
    ("bags.nested=true", lambda r: r.bags.nested is True),
]


@pytest.mark.parametrize(("override", "holds"), OVERRIDES)
def test_overrides(tmp_path, override, holds):
    changed = load_recipe(_write(tmp_path, PLAIN), [override])
    assert holds(changed)
    assert changed != load_recipe(_write(tmp_path, PLAIN)) or override == "train.max_steps=null"


def test_the_last_override_wins_and_one_may_build_on_another(tmp_path):
    file = _write(tmp_path, {**PLAIN, "bags": {"ratios": [0.1, 0.2]}})
    assert load_recipe(file, ["train.epochs=2", "train.epochs=3"]).train.epochs == 3
    assert load_recipe(file, ["bags.ratios=[0.3, 0.4]", "bags.ratios.1=0.9"]).bags.ratios == (0.3, 0.9)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epochs", "expected dotted.key=value"),
        ("=3", "expected dotted.key=value"),
        ("corpus.datasets.2.name=x", "must be an index from 0 to 1"),
        ("corpus.datasets.-1.name=x", "must be an index from 0 to 1"),
        ("corpus.datasets.².name=x", "must be an index from 0 to 1"),
        ("corpus.datasets.first.name=x", "must be an index from 0 to 1"),
        ("corpus.datasets.9=x", "must be an index from 0 to 1"),
        ("name.deeper=x", "'name' is a value, it has no keys"),
        ("train.epochs=[", "the value is not valid YAML"),
        ("train.epoch=3", "did you mean 'epochs'?"),
    ],
)
def test_bad_overrides_are_refused(tmp_path, override, told):
    with pytest.raises(BoomError) as caught:
        load_recipe(_write(tmp_path, PLAIN), [override])
    assert told in str(caught.value)


def test_environment_variables_fill_texts(tmp_path, monkeypatch):
    file = _write(tmp_path, _with(PLAIN, "corpus.datasets.0.path", "${BOOM_A}/x/${BOOM_B}"))
    monkeypatch.setenv("BOOM_A", "/data")
    monkeypatch.setenv("BOOM_B", "${BOOM_A}")
    assert load_recipe(file).corpus.datasets[0].path == "/data/x/${BOOM_A}"  # filled once, not again
    monkeypatch.delenv("BOOM_B")
    with pytest.raises(BoomError, match=r"'corpus\.datasets\.0\.path' uses \$\{BOOM_B\}.*not set"):
        load_recipe(file)
    assert load_recipe(file, ["corpus.datasets.0.path=there"]).corpus.datasets[0].path == "there"
    monkeypatch.setenv("BOOM_B", "")
    with pytest.raises(BoomError, match="not set"):
        load_recipe(file)


share = st.floats(0, 1, exclude_min=True, allow_nan=False)
sources = st.one_of(
    st.fixed_dictionaries({"path": st.text(min_size=1).filter(lambda t: "${" not in t)}),
    st.fixed_dictionaries({"source": st.just("python_environment"), "hard_negatives": st.integers(0, 9)}),
)
recipes = st.builds(
    lambda ratios, datasets, rate, scale, steps, build: parse_recipe(
        {
            "name": "r",
            "base": {"build": {}} if build else {"model": "x", "pooling": "cls"},
            "corpus": {"datasets": datasets},
            "bags": {"ratios": ratios},
            "train": {"learning_rate": rate, "max_steps": steps},
            "search": {"scale": sorted(scale)},
        }
    ),
    st.lists(share, min_size=1, max_size=6),
    st.lists(sources, min_size=1, max_size=3),
    st.floats(1e-12, 1e3),
    st.tuples(st.floats(0.01, 9), st.floats(0.01, 9)),
    st.none() | st.integers(1, 10**9),
    st.booleans(),
)


@given(recipes)
def test_the_resolved_recipe_reads_back_equal(recipe: Recipe):
    again = parse_recipe(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()


def test_the_written_file_reads_back_equal(tmp_path):
    recipe = parse_recipe(PLAIN)
    assert load_recipe(_write(tmp_path, recipe.to_yaml())) == recipe


def test_a_recipe_is_frozen():
    recipe = parse_recipe(PLAIN)
    for section, key in [(recipe, "seed"), (recipe.train, "epochs"), (recipe.corpus.datasets[0], "path")]:
        with pytest.raises(ValueError, match="frozen"):
            setattr(section, key, 1)


def test_the_defaults_are_the_paper_s():
    recipe = parse_recipe(PLAIN)
    assert recipe.bags.ratios == (0.2, 0.4, 0.6, 0.8, 1.0)
    assert (recipe.train.batch_size, recipe.train.learning_rate, recipe.train.temperature) == (256, 5e-5, 0.02)
    assert (recipe.corpus.dev.fraction, recipe.corpus.dev.min_rows) == (0.02, 50)
    assert recipe.search.trials >= 16
