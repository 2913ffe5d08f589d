"""Optuna's TPE through Ray Tune, asked and told in fixed rounds.

Tune's own wrappers tell the sampler in the order in which trials happen to end, so two runs differ. Here a round of
trials is asked together and told together, in trial order, when the last of it has ended: the proposals depend on the
seed and the values alone, whatever the number of actors.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search import Searcher


class RoundSearch(Searcher):
    """Minimises ``metric`` over ``weight_0 .. weight_{M-1}`` in [0, 1] and ``scale`` in its bounds."""

    def __init__(
        self, members: int, scale: tuple[float, float], round_size: int, seed: int, first: Sequence[dict[str, float]]
    ) -> None:
        """``first``: points that are tried before the sampler proposes its own (the closed-form baselines)."""
        super().__init__(metric="objective", mode="min")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # the first rounds are random: TPE models what it has seen, so it must have seen something
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(8, len(first)))
        self._study = optuna.create_study(direction="minimize", sampler=sampler)
        for point in first:
            self._study.enqueue_trial(point)
        self._members = members
        self._scale = scale
        self._round_size = round_size
        self._open: dict[str, optuna.Trial] = {}
        self._values: dict[str, float] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next point; None while the round waits for its last value."""
        if len(self._open) >= self._round_size:
            return None
        trial = self._study.ask()
        point = {f"weight_{i}": trial.suggest_float(f"weight_{i}", 0.0, 1.0) for i in range(self._members)}
        point["scale"] = trial.suggest_float("scale", *self._scale)
        self._open[trial_id] = trial
        return {**point, "number": trial.number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self._open:
            return
        value = math.nan if error or not result else float(result.get(self.metric, math.nan))
        self._values[trial_id] = value
        if len(self._values) == self._round_size:
            self._tell()

    def _tell(self) -> None:
        for trial_id, trial in sorted(self._open.items(), key=lambda item: item[1].number):
            value = self._values[trial_id]
            if math.isfinite(value):
                self._study.tell(trial, value)
            else:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        self._open.clear()
        self._values.clear()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **_: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps(self.__dict__))

    def restore(self, checkpoint_path: str) -> None:
        self.__dict__.update(pickle.loads(Path(checkpoint_path).read_bytes()))
