"""The catalogue: every entry is a valid source, groups are what the paper trained on, and a plan needs no network."""

from __future__ import annotations

import socket

import pytest
import yaml

from boom_ray import catalogue
from boom_ray.config import BoomError
from boom_ray.config.corpus import FilesSource
from boom_ray.recipe import load_recipe
from boom_ray.runs import look, plan

BASE = {"name": "r", "base": {"model": "some/base"}}


def _recipe(tmp_path, *items):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**BASE, "corpus": {"datasets": list(items)}}))
    return file


def test_every_entry_is_a_source():
    for name in catalogue.names("general"):
        (entry,) = catalogue.expand([{"catalogue": name}])
        source = FilesSource(**entry)
        assert source.name == name
        assert source.task_type is not None
        assert source.instruction.query.startswith("Instruct: ")
        assert source.instruction.query.endswith("\nQuery: ")
        assert source.revision or "@" in (source.path or "") or "cornstack" in name


def test_groups_are_the_papers():
    english = catalogue.names("english")
    kinds = [catalogue.expand([{"catalogue": name}])[0]["task_type"] for name in english]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "retrieval": 10, "reranking": 1, "sts": 1, "classification": 8, "clustering": 11,
    }  # fmt: skip
    assert not {"quora", "scidocsrr", "arguana"} & set(english)
    general = catalogue.names("general")
    assert set(english) < set(general)
    assert len(general) == len(english) + 2 + 16 + 11 + 6
    assert len(catalogue.names("code")) == 6


def test_rules_of_the_papers_code():
    entries = {name: FilesSource(**catalogue.expand([{"catalogue": name}])[0]) for name in catalogue.names("english")}
    assert [n for n, e in entries.items() if e.hard_negatives is not None] == ["nli"]
    assert entries["nli"].hard_negatives == 1
    for entry in entries.values():
        symmetric = entry.task_type in ("sts", "classification", "clustering")
        assert bool(entry.symmetric) == symmetric
        assert (entry.negatives == "own") == (entry.task_type in ("classification", "clustering"))
        both = entry.task_type in ("sts", "clustering")
        assert entry.instruction.passage == (entry.instruction.query if both else "")
    assert entries["sts"].loss == "infonce"


def test_an_item_stands_for_its_entries_in_place(tmp_path):
    item = {"catalogue": ["nli", "english"], "cap": 1000, "weight": 2.0}
    recipe = load_recipe(_recipe(tmp_path, {"path": "a.jsonl"}, item, {"path": "b.jsonl"}))
    datasets = recipe.corpus.datasets
    assert [d.name for d in datasets[:3]] == [None, "nli", "msmarco_passage"]
    assert len(datasets) == 2 + len(catalogue.names("english"))
    assert all((d.cap, d.weight) == (1000, 2.0) for d in datasets[1:-1])
    written = tmp_path / "written.yaml"
    written.write_text(recipe.to_yaml())
    assert "catalogue" not in written.read_text()
    assert load_recipe(written) == recipe


def test_an_unknown_name_gets_the_nearest_one(tmp_path):
    with pytest.raises(BoomError, match=r"no 'msmarco_pasage': did you mean 'msmarco_passage'\?"):
        load_recipe(_recipe(tmp_path, {"catalogue": ["msmarco_pasage"]}))
    with pytest.raises(BoomError, match="groups are english, multilingual, code, general"):
        load_recipe(_recipe(tmp_path, {"catalogue": "zzzzzzzz"}))
    with pytest.raises(BoomError, match=r"unknown key 'corpus.datasets.0.cpa'"):
        load_recipe(_recipe(tmp_path, {"catalogue": "nli", "cpa": 1}))


def test_a_plan_needs_no_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a plan went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    file = _recipe(tmp_path, {"catalogue": "general"})
    recipe, steps = plan(file, run_dir=tmp_path / "run")
    assert steps[0].name == "corpus"
    assert not steps[0].done
    changed = load_recipe(file, ["corpus.datasets.0.revision=other"])
    assert not set(map(str, look(recipe).sources)) & set(map(str, look(changed).sources))


def test_own_files_in_the_place_of_the_hubs(tmp_path):
    recipe = load_recipe(_recipe(tmp_path, {"catalogue": ["nli", "banking77"], "path": "mine/*.jsonl"}))
    assert [(d.name, d.path, d.hub) for d in recipe.corpus.datasets] == [
        ("nli", "mine/*.jsonl", None),
        ("banking77", "mine/*.jsonl", None),
    ]
