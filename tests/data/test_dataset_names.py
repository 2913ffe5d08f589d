"""Which datasets a corpus has, from the recipe and the first usable row of each file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boom_ray.config import BoomError, parse_recipe
from boom_ray.config.corpus import Corpus
from boom_ray.data.dataset_names import datasets_of
from boom_ray.runs import look


def _write(folder: Path, name: str, *rows: Any) -> str:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / name).write_text(text)
    return str(folder / name)


ROW = {"query": "a", "pos": ["b"], "task_type": "retrieval"}


def test_names_and_types_come_from_entries_rows_and_files(tmp_path):
    entries = [
        {"path": _write(tmp_path, "one.jsonl", "not JSON", {"query": ""}, ROW)},
        {"path": _write(tmp_path, "two.jsonl", {**ROW, "dataset": "named"}, {**ROW, "dataset": "later"})},
        {"path": "not/read", "name": "faq", "task_type": "reranking"},
        {"path": _write(tmp_path, "three.jsonl", ROW), "name": "faq", "task_type": "reranking"},
        {"path": _write(tmp_path, "four.jsonl", {"query": "a", "pos": ["b"]}), "task_type": "clustering"},
        {"path": _write(tmp_path, "empty.jsonl")},
        {"source": "python_environment"},
    ]
    assert datasets_of(Corpus.model_validate({"datasets": entries})) == (
        ("one", "retrieval"),
        ("named", "retrieval"),
        ("faq", "reranking"),
        ("four", "clustering"),
        ("python_functions", "retrieval"),
        ("python_modules", "clustering"),
        ("python_packages", "classification"),
    )


@pytest.mark.parametrize("kind", ["subset", "dataset"])
def test_only_kinds_that_need_the_datasets_have_them_looked_up(tmp_path, kind):
    file = _write(tmp_path, "one.jsonl", ROW)
    raw = {"name": "r", "base": {"build": {}}, "corpus": {"datasets": [{"path": file}]}, "bags": {"kind": kind}}
    assert look(parse_recipe(raw)).datasets == ((("one", "retrieval"),) if kind == "dataset" else ())


@pytest.mark.parametrize(
    ("bags", "message"),
    [
        ({"kind": "dataset", "ratios": [0.5, 1.0]}, "ratios is then one number"),
        ({"kind": "groups"}, "needs 'groups'"),
        ({"groups": {"a": ["x"]}}, "no other kind takes them"),
        ({"kind": "bootstrap", "nested": True}, "nested"),
        ({"dataset_ratios": {"a": -1}}, "at least 0"),
    ],
)
def test_bags_that_make_no_sense_are_refused(bags, message):
    raw = {"name": "r", "base": {"build": {}}, "corpus": {"datasets": [{"path": "x"}]}, "bags": bags}
    with pytest.raises(BoomError, match=message):
        parse_recipe(raw)


def test_a_resolved_recipe_reads_back_equal():
    raw = {"name": "r", "base": {"build": {}}, "corpus": {"datasets": [{"path": "x"}]}, "bags": {"kind": "task_type"}}
    recipe = parse_recipe(raw)
    assert recipe.bags.ratios == (1.0,)
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
