"""Every YAML that is shipped parses; recipes and merge configs pass their own checks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from boom_ray.config_corpus import FilesSource
from boom_ray.recipe import load_recipe

PROJECT = Path(__file__).parent.parent
RECIPES = sorted((PROJECT / "jobs" / "recipes").glob("*.yaml"))
OTHERS = sorted(
    file for folder in ("jobs", "cluster", "docs") for file in (PROJECT / folder).rglob("*.y*ml") if file not in RECIPES
)


def test_the_recipes_that_are_promised_are_there():
    assert {"quickstart.yaml", "multitask.yaml"} <= {file.name for file in RECIPES}


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.name)
def test_recipes_load(file, monkeypatch, tmp_path):
    monkeypatch.setenv("BOOM_RAY_DATA", str(tmp_path))
    recipe = load_recipe(file)
    assert recipe.name == file.stem
    for source in recipe.corpus.datasets:
        assert not isinstance(source, FilesSource) or source.path.startswith(str(tmp_path))


def test_quickstart_is_what_the_issue_asks_for():
    recipe = load_recipe(PROJECT / "jobs" / "recipes" / "quickstart.yaml")
    assert len(recipe.bags.ratios) >= 3
    assert recipe.search.trials >= 16
    assert recipe.search.trials % recipe.search.round == 0
    assert recipe.base.build is not None
    assert recipe.base.build.warm_steps > 0


def test_multitask_has_the_five_bags(monkeypatch):
    monkeypatch.setenv("BOOM_RAY_DATA", "/data")
    assert load_recipe(PROJECT / "jobs" / "recipes" / "multitask.yaml").bags.ratios == (0.2, 0.4, 0.6, 0.8, 1.0)


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
