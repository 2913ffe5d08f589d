"""The final actor: it merges and publishes; between the two, :mod:`boom_ray.stages.scoring` scores all models.

One actor on one node, next to the storage: each merge streams shard by shard through constant memory, and the chosen
one is published by rename with card, manifest and ``_SUCCESS``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from boom_ray.config import Recipe
from boom_ray.evaluate.sets import EvalSet
from boom_ray.ledger import Ledger
from boom_ray.merge.registry import get_method
from boom_ray.plan import Keys
from boom_ray.report.card import write_card
from boom_ray.search.coefficients import effective_scale, groups_of, merge_spec, point_coefficients
from boom_ray.search.points import Point


@dataclass(frozen=True)
class FinalTask:
    """What the final actor works on."""

    recipe: Recipe
    root: str
    keys: Keys
    sets: tuple[EvalSet, ...]
    trained: tuple[str, ...]
    threads: int


class Final:
    """Each method makes one kind of artifact and commits it."""

    def __init__(self, task: FinalTask) -> None:
        import torch

        torch.set_num_threads(task.threads)
        self._task = task
        self._ledger = Ledger(task.root)
        self._verified = False

    def merge(self, name: str, point: Point) -> None:
        """Stream the members into one model at this point, from the cached Gram matrices.

        Raises:
            BoomError: a member is not what was trained; names the file. No byte is written then.
        """
        from boom_ray.merge.gram import Grams
        from boom_ray.merge.job import forget
        from boom_ray.merge.stream import MergeOptions, plan_coefficients
        from boom_ray.stages.merging import merge_on_cluster

        settings, keys = self._task.recipe.merge, self._task.keys
        self._verify_members()
        spec = merge_spec(self._ledger, keys, self._task.recipe)
        grams = Grams.load(spec.grams)
        groups = groups_of(point, list(grams.matrices))
        chosen = point_coefficients(grams, spec, point, groups)
        key = keys.merges[name]
        scratch = self._ledger.scratch("merges", key.name)  # a known place: a merge that was killed goes on there
        options = MergeOptions(shard_size=settings.shard_size.replace(" ", ""))
        plan = plan_coefficients(chosen, spec.members, spec.base, scratch, options=options)
        nodes = merge_on_cluster(plan)
        inputs = {"members": [member.identity for member in keys.ensemble.values()], "base": keys.base.identity}
        with self._ledger.stage(key, inputs=inputs) as stage:
            stage.path.rmdir()
            scratch.rename(stage.path)
            recipe = mergekit_recipe(self._task, point, groups)
            (stage.path / "mergekit_config.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
            stage.meta.update(weights=list(point.mean_weights()), scale=effective_scale(point), method=point.method)
            stage.meta.update(point=point.to_json(), tensors_by_node=nodes)
        forget(plan)

    def _verify_members(self) -> None:
        """Once: all merges are of the same members, whose Gram matrices may be of long ago."""
        if not self._verified:
            for key in (*self._task.keys.ensemble.values(), self._task.keys.base):
                self._ledger.verify(key)
            self._verified = True

    def publish(self, summary: dict[str, Any]) -> str:
        """Copy the chosen merge, write its card, and commit it as the published directory."""
        keys, recipe = self._task.keys, self._task.recipe
        chosen = keys.merges[recipe.merge.weights]
        self._ledger.verify(chosen)
        with self._ledger.stage(keys.published, inputs={"merge": chosen.identity}) as stage:
            source = self._ledger.path(chosen)
            shutil.copytree(source, stage.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
            card = write_card(summary, published_name=keys.published.name)
            (stage.path / "README.md").write_text(card, encoding="utf-8")
            stage.meta.update(
                members=summary["members"], models=summary["models"], corpus=summary["corpus"], seed=recipe.seed
            )
        return str(self._ledger.path(keys.published))


def mergekit_recipe(task: FinalTask, point: Point, groups: Mapping[str, str]) -> dict[str, Any]:
    """The merge as a mergekit recipe, paths relative to the run directory; scale and task_vectors are our own keys.

    The base's share stands in the scale. Weights by tensor group are filters on the tensors' names.
    """
    keys, settings, scale = task.keys, task.recipe.merge, effective_scale(point)
    models = [
        {"model": f"{key.kind}/{key.name}", "parameters": {"weight": _weight(point, groups, place)}}
        for place, key in enumerate(keys.ensemble.values())
    ]
    recipe: dict[str, Any] = {"merge_method": point.method, "models": models, "dtype": "float32"}
    if settings.task_vectors or scale != 1.0 or get_method(point.method).space == "delta":
        recipe["base_model"] = f"{keys.base.kind}/{keys.base.name}"
    if scale != 1.0:
        recipe["parameters"] = {"scale": float(scale), "task_vectors": settings.task_vectors}
    return recipe


def _weight(point: Point, groups: Mapping[str, str], member: int) -> float | list[dict[str, Any]]:
    if not point.grouped:
        return float(point.of("all")[member])
    names = sorted(groups, key=lambda name: (-len(name), name))  # a filter matches inside of names: long ones first
    return [{"filter": name, "value": float(point.of(groups[name])[member])} for name in names]
