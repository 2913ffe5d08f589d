"""mergekit recipes: parameters over layers and by filter, roles of the base, refusals by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from boom_ray.config import BoomError
from boom_ray.merge.mergekit_recipe import Depth, read_recipe, resolve
from boom_ray.merge.options import MergeOptions
from boom_ray.merge.recipe_plan import plan_recipe

QUERY = "encoder.layer.{}.attention.self.query.weight"


def test_values_over_layers_and_by_filter() -> None:
    depth = Depth.of([QUERY.format(i) for i in range(5)] + ["embeddings.weight"])
    assert [depth.at(QUERY.format(i)) for i in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert depth.at("embeddings.weight") == 0.0
    scope = {"weight": [{"filter": "query", "value": [0.0, 1.0, 0.0]}, {"value": "1e-3"}]}
    found = [resolve("weight", [scope], QUERY.format(i), i / 4, "recipe") for i in range(5)]
    assert found == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert resolve("weight", [scope], "embeddings.weight", 0.0, "recipe") == 1e-3
    assert resolve("weight", [{"weight": [{"filter": "mlp", "value": 1}]}, {"weight": 7}], "a", 0, "recipe") == 7


def test_settings_of_every_tensor(family: tuple[list[Path], Path]) -> None:
    members, base = family
    recipe = {
        "merge_method": "multislerp",
        "base_model": str(base),
        "models": [
            {"model": str(members[0]), "parameters": {"weight": [0.0, 1.0]}},
            {"model": str(members[1]), "parameters": {"weight": [{"filter": "pooler", "value": 3}, {"value": 1}]}},
        ],
        "parameters": {"normalize_weights": False, "scale": 1.2},
    }
    plan = plan_recipe(read_recipe(recipe), Path("out"), MergeOptions())
    assert plan.settings is not None
    settings = plan.settings
    assert settings[QUERY.format(0)].weights == (0.0, 1.0)
    assert settings[QUERY.format(1)].weights == (0.5, 1.0)
    assert settings["pooler.dense.weight"].weights == (0.0, 3.0)
    assert settings[QUERY.format(2)].parameters == {"normalize_weights": False}
    assert settings[QUERY.format(2)].scale == 1.2
    assert settings[QUERY.format(2)].task_vectors


def test_roles_of_the_base(family: tuple[list[Path], Path]) -> None:
    members, base = family

    def plan(method: str, models: list[Path], **more: object) -> object:
        entries = [{"model": str(m), "parameters": {"weight": 1}} for m in models]
        recipe = {"merge_method": method, "models": entries, "base_model": str(base), **more}
        return plan_recipe(read_recipe(recipe), Path("out"), MergeOptions())

    found = plan("slerp", [members[0], base], parameters={"t": 0.25})
    assert (found.members, found.base) == ((base, members[0]), None)  # type: ignore[attr-defined]
    assert found.settings[QUERY.format(1)].weights == (0.75, 0.25)  # type: ignore[attr-defined]
    assert plan("linear", [*members, base]).members == (*members, base)  # type: ignore[attr-defined]
    assert plan("task_arithmetic", [*members, base]).members == tuple(members)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": []}, "'slices' is not supported"),
        ({"tokenizer_source": "union"}, "'tokenizer_source' is not supported"),
        ({"merge_metod": 1}, "did you mean 'merge_method'"),
        ({"merge_method": "dare_ties"}, "unknown merge method 'dare_ties'"),
        ({"merge_method": "della"}, "unknown merge method 'della'"),
        ({"dtype": "int8"}, "not one of float32"),
        ({"parameters": {"wieght": 1}}, "no parameter 'wieght'"),
        ({"models": []}, "models"),
        ({"parameters": {"weight": [{"value": 1, "filtre": "x"}]}}, "'value' and 'filter' only"),
        ({"base_model": "somewhere/else"}, "not a directory"),
        ({"merge_method": "ties"}, "needs a base"),
    ],
)
def test_refusals(family: tuple[list[Path], Path], change: dict[str, object], message: str) -> None:
    weights = {} if "parameters" in change else {"parameters": {"weight": 1}}
    recipe = {"merge_method": "linear", "models": [{"model": str(m), **weights} for m in family[0]], **change}
    with pytest.raises(BoomError, match=message):
        plan_recipe(read_recipe(recipe), Path("out"), MergeOptions())


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text("merge_method: !!python/object/apply:os.getcwd []\nmodels: []\n")
    with pytest.raises(BoomError, match="not valid YAML"):
        read_recipe(file)
    with pytest.raises(BoomError, match="does not exist"):
        read_recipe(tmp_path / "none.yml")
