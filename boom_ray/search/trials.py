"""Merge-weight search: Ray Tune trials over resident members.

A trial costs its encoding and nothing else: the trial actors are reused, each keeps the members mapped and one model
in memory, and nothing is written per trial.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import RunConfig, Trainable, TuneConfig

from boom_ray.config import BoomError, Recipe
from boom_ray.data.bagging import Draw, derive_seed
from boom_ray.data.batches import DrawSettings
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys
from boom_ray.search.objective import dev_batches, dev_losses, relative_loss
from boom_ray.search.resident import MergeSpec, Resident, merge_spec
from boom_ray.search.rounds import RoundSearch
from boom_ray.train.rows import read_draw


@dataclass(frozen=True)
class TrialSpec:
    """What every trial actor needs."""

    merge: MergeSpec
    tokens: Path
    draw: Draw
    settings: DrawSettings
    max_rows: int
    temperature: float
    threads: int


class MergeTrial(Trainable):
    """Scores one point per trial; Tune reuses the actor for the next."""

    def setup(self, config: dict[str, Any], spec: TrialSpec) -> None:
        import torch

        torch.set_num_threads(spec.threads)
        self._spec = spec
        self._resident = Resident(spec.merge, device="cpu")
        self._batches = dev_batches(spec.tokens, spec.draw, "a", spec.max_rows, spec.settings)
        self._base = self._losses()  # the resident model starts as the base

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        started = time.perf_counter()
        weights = [self.config[f"weight_{i}"] for i in range(len(self._spec.merge.members))]
        value, losses = math.nan, {}
        if sum(weights) > 0:
            self._resident.apply(weights, self.config["scale"])
            losses = self._losses()
            value = relative_loss(losses, self._base)
        return {"objective": value, "losses": losses, "seconds": time.perf_counter() - started, "done": True}

    def _losses(self) -> dict[str, float]:
        encoder = self._resident.encoder
        return dev_losses(encoder.backbone, self._batches, encoder.pooling, encoder.pad_id, self._spec.temperature)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A trial is over after one step: there is nothing to resume."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See :meth:`save_checkpoint`."""


def search_weights(recipe: Recipe, ledger: Ledger, keys: Keys, out: Path) -> dict[str, Any]:
    """Search and write ``trials.jsonl`` (one line per trial, in order) into ``out``.

    Returns:
        The best trial: number, weights (sum 1), scale, value. Ties go to the lower number; a NaN never wins.

    Raises:
        BoomError: every trial failed.
    """
    settings = recipe.search
    members = len(keys.ensemble)
    spec = TrialSpec(
        merge=merge_spec(ledger, keys, recipe),
        tokens=ledger.path(keys.tokens).resolve(),
        draw=read_draw(ledger, keys),
        settings=DrawSettings(recipe.seed, recipe.train.hard_negatives),
        max_rows=settings.max_rows,
        temperature=recipe.train.temperature,
        threads=recipe.resources.cpus_per_worker,
    )
    searcher = RoundSearch(
        members, settings.scale, settings.round, derive_seed(recipe.seed, "search") % 2**32, _baselines(recipe, keys)
    )
    trainable = tune.with_resources(tune.with_parameters(MergeTrial, spec=spec), {"cpu": spec.threads})
    tuner = tune.Tuner(
        trainable,
        tune_config=TuneConfig(
            metric="objective",
            mode="min",
            search_alg=searcher,
            num_samples=_whole_rounds(settings.trials, settings.round),
            max_concurrent_trials=settings.actors,
            reuse_actors=True,
        ),
        run_config=RunConfig(name=keys.search.name, storage_path=str(ledger.scratch("tune").resolve()), verbose=0),
    )
    trials = sorted((_trial(result, members) for result in tuner.fit()), key=lambda t: t["number"])
    (out / "trials.jsonl").write_text("".join(json.dumps(t) + "\n" for t in trials))
    finite = [t for t in trials if t["value"] is not None]
    if not finite:
        raise BoomError("every trial of the search failed: no finite objective. See scratch/tune in the run directory.")
    best = min(finite, key=lambda t: (t["value"], t["number"]))
    return {name: best[name] for name in ("number", "weights", "scale", "value")}


def _baselines(recipe: Recipe, keys: Keys) -> list[dict[str, float]]:
    """The closed-form merges first: the search can then only find something better on its half."""
    ratios = keys.ratios
    low, high = recipe.search.scale
    scale = min(max(1.0, low), high)
    points = [ratios, [1.0] * len(ratios)]
    return [{**{f"weight_{i}": w for i, w in enumerate(point)}, "scale": scale} for point in points]


def _whole_rounds(trials: int, round_size: int) -> int:
    """At least ``trials``, in whole rounds: an open round would wait for a trial that never comes."""
    return -(-trials // round_size) * round_size


def _trial(result: Any, members: int) -> dict[str, Any]:
    config, metrics = result.config, result.metrics or {}
    weights = [config[f"weight_{i}"] for i in range(members)]
    total = sum(weights)
    value = metrics.get("objective", math.nan)
    return {
        "number": config["number"],
        "weights": [w / total for w in weights] if total > 0 else weights,
        "scale": config["scale"],
        "value": value if math.isfinite(value) else None,
        "losses": metrics.get("losses", {}),
        "seconds": metrics.get("seconds", 0.0),
    }
