"""The final actor: it merges, scores, compares and publishes.

One actor on one node does the end of a run, next to the storage: each merge streams shard by shard through constant
memory, each model is scored by mteb, and the chosen merge is published by rename with card, manifest and ``_SUCCESS``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from boom_ray.config import Recipe
from boom_ray.data.bagging import Draw
from boom_ray.data.batches import DrawSettings
from boom_ray.evaluate.score import evaluate
from boom_ray.evaluate.sets import EvalSet
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import Keys
from boom_ray.report.card import write_card
from boom_ray.search.objective import dev_batches, dev_losses


@dataclass(frozen=True)
class FinalTask:
    """What the final actor works on."""

    recipe: Recipe
    root: str
    keys: Keys
    sets: tuple[EvalSet, ...]
    trained: tuple[str, ...]
    threads: int


@ray.remote(max_restarts=0)
class Final:
    """Each method makes one kind of artifact and commits it."""

    def __init__(self, task: FinalTask) -> None:
        import torch

        torch.set_num_threads(task.threads)
        self._task = task
        self._ledger = Ledger(task.root)

    def merge(self, name: str, weights: Sequence[float], scale: float) -> None:
        """Stream the members into one model with these merge weights and this scale."""
        keys, recipe = self._task.keys, self._task.recipe
        key = keys.merges[name]
        with self._ledger.stage(key, inputs={"members": [k.identity for k in keys.members]}) as stage:
            merge_spec(self._ledger, keys, recipe).write(weights, scale, stage.path, recipe.merge.shard_size)
            stage.meta.update(weights=list(weights), scale=scale, method=recipe.merge.method)
            stage.meta["members"] = [path.name for path in member_dirs(self._ledger, keys)]

    def score(self, name: str, model: Key, key: Key) -> None:
        """Score one model on all sets with mteb, and on both dev halves."""
        recipe = self._task.recipe
        directory = self._ledger.path(model)
        with self._ledger.stage(key, inputs={"model": model.identity}) as stage:
            scores = {}
            if self._task.sets:
                scores = evaluate(
                    directory,
                    self._task.sets,
                    results=stage.path / "mteb",
                    cap=recipe.evaluate.cap,
                    chunk_tokens=recipe.evaluate.chunk_tokens,
                    name=f"{recipe.name}/{name}",
                    revision=model.identity,
                    trained=self._task.trained,
                )
            stage.meta.update(scores=scores, dev={half: self._dev(directory, half) for half in ("a", "b")})

    def _dev(self, directory: Path, half: str) -> dict[str, float]:
        from boom_ray.encoder import Encoder

        recipe, keys = self._task.recipe, self._task.keys
        drawn = Draw.from_json(self._ledger.read_json(keys.bags, "draw.json"))
        settings = DrawSettings(recipe.seed, recipe.train.hard_negatives)
        batches = dev_batches(self._ledger.path(keys.tokens), drawn, half, recipe.search.max_rows, settings)
        encoder = Encoder.load(directory)
        return dev_losses(encoder.backbone, batches, encoder.pooling, encoder.pad_id, recipe.train.temperature)

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
