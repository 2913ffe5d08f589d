"""Every YAML that is shipped parses; recipes and merge configs pass their own checks."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml

from boom_ray import catalogue
from boom_ray.commands.plan import unfetched_lines
from boom_ray.config.corpus import FilesSource
from boom_ray.recipe import load_recipe
from boom_ray.runs import look_at, plan

PROJECT = Path(__file__).parent.parent
RECIPES = sorted((PROJECT / "jobs" / "recipes").glob("*.yaml"))
OTHERS = sorted(
    file for folder in ("jobs", "cluster", "docs") for file in (PROJECT / folder).rglob("*.y*ml") if file not in RECIPES
)


def test_the_recipes_that_are_promised_are_there():
    promised = {"quickstart.yaml", "multitask.yaml", "boom_0.6b.yaml", "boom_4b.yaml"}
    assert promised <= {file.name for file in RECIPES}


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.name)
def test_recipes_load(file, monkeypatch, tmp_path):
    monkeypatch.setenv("BOOM_RAY_DATA", str(tmp_path))
    recipe = load_recipe(file)
    assert recipe.name == file.stem
    for source in recipe.corpus.datasets:
        if isinstance(source, FilesSource):
            assert source.revision or source.path.startswith((str(tmp_path), "hf://datasets/cfli/bge-full-data@"))


def test_quickstart_is_what_the_issue_asks_for():
    recipe = load_recipe(PROJECT / "jobs" / "recipes" / "quickstart.yaml")
    assert len(recipe.bags.ratios) >= 3
    assert recipe.search.trials >= 16
    assert recipe.search.trials % recipe.search.round == 0
    assert recipe.base.build is not None
    assert recipe.base.build.warm_steps > 0


def test_multitask_is_the_condition_that_the_study_found_best(monkeypatch):
    monkeypatch.setenv("BOOM_RAY_DATA", "/data")
    recipe, study = (load_recipe(PROJECT / "jobs" / "recipes" / f"{name}.yaml") for name in ("multitask", "study"))
    assert study.study is not None
    best = next(c for c in study.study.conditions if c.name == "wise-0.8-long")
    assert recipe.bags.ratios == tuple(best.bags["ratios"])
    assert (recipe.train.epochs, recipe.merge.scale, recipe.merge.weights) == (best.passes, best.scale, best.weights)


# What the paper's scripts set (its repository at aabd1b55); the rest of both recipes is the same
PAPER = {
    "schedule": "batch_shuffle", "epochs": 1, "max_steps": None, "tail": "drop", "learning_rate": 5e-5,
    "warmup_ratio": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0, "temperature": 0.02, "hard_negatives": 7,
    "false_negative_margin": None, "accumulation": 1, "gradient_checkpointing": True, "offload": "none",
}  # fmt: skip
SMALL = {"batch_size": 256, "precision": "float16", "lora": None, "zero_stage": 1}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LARGE = {"batch_size": 128, "precision": "bfloat16", "zero_stage": 3}


@pytest.mark.parametrize("name", ["0.6b", "4b"])
def test_the_papers_recipes_have_its_settings(name):
    recipe = load_recipe(PROJECT / "jobs" / "recipes" / f"boom_{name}.yaml")
    train = recipe.train.model_dump()
    assert {key: train[key] for key in PAPER} == PAPER
    own = SMALL if name == "0.6b" else {**LARGE, "lora": {"rank": 32, "alpha": 32, "dropout": 0.1, "targets": TARGETS}}
    assert {key: train[key] for key in own} == own
    base = recipe.base
    assert (base.model, base.pooling, base.max_tokens) == (f"Qwen/Qwen3-{name.upper()}", "lasttoken", 512)
    assert len(base.revision or "") == 40
    assert (recipe.bags.kind, recipe.bags.ratios, recipe.bags.nested) == ("subset", (0.2, 0.4, 0.6, 0.8, 1.0), False)
    merge = recipe.merge
    assert (merge.method, merge.task_vectors, merge.weights) == ("multislerp", False, "ratio")
    assert [source.name for source in recipe.corpus.datasets] == list(catalogue.names("english"))


@pytest.mark.parametrize("name", ["0.6b", "4b"])
def test_the_papers_recipes_are_planned_without_a_network(name, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a plan went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    file = PROJECT / "jobs" / "recipes" / f"boom_{name}.yaml"
    (told,) = unfetched_lines(*look_at(file, run_dir=tmp_path / "run"))
    assert told.startswith(f"Not fetched yet: 31 datasets and the base Qwen/Qwen3-{name.upper()};")
    _, steps = plan(file, run_dir=tmp_path / "run")
    named = [step.name for step in steps]
    assert named[:4] == ["corpus", "start", "tokens", "bags"]
    assert [name for name in named if name.startswith("member-")] == [f"member-{i}" for i in range(5)]
    assert not any(step.done for step in steps)


@pytest.mark.parametrize("file", OTHERS, ids=lambda f: f.relative_to(PROJECT).as_posix())
def test_other_yaml_parses(file):
    documents = [d for d in yaml.safe_load_all(file.read_text(encoding="utf-8")) if d is not None]
    assert documents
    assert all(isinstance(d, dict) for d in documents)


@pytest.mark.parametrize("file", [*RECIPES, *OTHERS], ids=lambda f: f.relative_to(PROJECT).as_posix())
def test_no_key_is_given_twice(file):
    """YAML takes the last one without a word."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [
                self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"
            ]
            assert len(keys) == len(set(keys)), f"{file}: {keys}"
            return super().construct_mapping(node, deep)

    list(yaml.load_all(file.read_text(encoding="utf-8"), Strict))


@pytest.mark.parametrize("file", OTHERS, ids=lambda f: f.relative_to(PROJECT).as_posix())
def test_no_cluster_opens_a_dashboard_to_the_world(file):
    for line in file.read_text(encoding="utf-8").splitlines():
        code = line.partition("#")[0]
        assert "dashboard-host=0.0.0.0" not in code or "token" in file.read_text().lower(), file
