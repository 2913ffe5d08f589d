"""The search of merge weights, scale and method on Ray Tune: every trial is a judgement by a reused actor.

A trial costs its encoding and nothing else: the actors keep the members mapped and one model in memory, and nothing is
written per trial but its line in ``trials.jsonl``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import RunConfig, Trainable, TuneConfig
from ray.tune.execution import class_cache

from boom_ray.config import BoomError, Recipe
from boom_ray.config.search import GRADIENT
from boom_ray.data.rules import dataset_rules
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys
from boom_ray.search.baselines import Outcome, whole_search
from boom_ray.search.judging import Judge, JudgeSpec
from boom_ray.search.outcome import HALF_B, write_outcome
from boom_ray.search.rounds import VALUE, Records, ScriptSearch
from boom_ray.search.searchers import Asked
from boom_ray.search.settings import code_version, judge_spec, setup_of
from boom_ray.search.trial_log import FILE, Trial, TrialLog

_QUIET_SECONDS = 10.0  # between two lines of progress

Echo = Callable[[str], None]


class MergeTrial(Trainable):
    """Judges once per trial; Tune reuses the actor for the next."""

    def setup(self, config: dict[str, Any], spec: JudgeSpec) -> None:
        import torch

        torch.set_num_threads(spec.threads)
        self._judge: Judge | None = None
        self._broken: str | None = None
        try:
            self._judge = Judge(spec)
        except BoomError as error:  # of every actor alike: the searcher ends the search with it
            self._broken = str(error)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        if self._judge is None:
            return {VALUE: 0.0, "broken": self._broken, "done": True}
        found = self._judge(self.config["asked"])
        value = found.get("value")
        return {
            VALUE: float("nan") if value is None else value,
            "found": json.dumps(found),
            "notes": self._judge.notes,
            "done": True,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A trial is over after one step: there is nothing to resume."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See :meth:`save_checkpoint`."""


def search_weights(
    recipe: Recipe, ledger: Ledger, keys: Keys, out: Path, echo: Echo = lambda line: None
) -> dict[str, Any]:
    """Search, and write ``trials.jsonl``, ``search.json`` and the row values on half B into ``out``.

    What a search of this identity has found before it was killed is taken over.

    Returns:
        For the manifest: the best trial's number, point, weights (sum 1; mean over groups), scale and value.

    Raises:
        BoomError: every trial failed; nothing to judge by; a space without points.
    """
    scratch = ledger.scratch("search", keys.search.name)
    setup = setup_of(recipe, ledger, keys)
    spec = judge_spec(recipe, ledger, keys, scratch / HALF_B)
    (scratch / HALF_B).mkdir(exist_ok=True)
    records = Records(TrialLog(scratch / FILE), TrialLog(scratch / "others.jsonl"), code_version())
    records.told, records.say = _Progress(recipe.search.trials, echo), lambda note: echo(f"  {note}")
    search = ScriptSearch(whole_search(setup), records)
    if not search.finished:
        _tune(search, spec, recipe, ledger.scratch("tune") / keys.search.name)
    if search.broken:
        raise search.broken
    outcome = search.result
    if outcome is None:
        raise BoomError(f"the search ended before its last trial. Its errors lie in {ledger.scratch('tune')}.")
    return _keep(outcome, recipe, ledger, keys, out)


def _keep(outcome: Outcome, recipe: Recipe, ledger: Ledger, keys: Keys, out: Path) -> dict[str, Any]:
    scratch = ledger.scratch("search", keys.search.name)
    TrialLog(scratch / FILE).write_sorted(out / FILE)
    shutil.copytree(scratch / HALF_B, out / HALF_B)
    types = {
        name: rule.task_type for name, rule in dataset_rules(ledger.read_json(keys.tokens, "datasets.json")).items()
    }
    write_outcome(outcome, recipe, keys, types, out)
    point = outcome.best.point
    assert point is not None
    found = {"number": outcome.best.number, "value": outcome.best.value, "point": point.to_json()}
    return {**found, "weights": list(point.mean_weights()), "scale": point.scale, "method": point.method}


def _tune(search: ScriptSearch[Outcome], spec: JudgeSpec, recipe: Recipe, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a search that was killed: the log is what is resumed
    trainable = tune.with_resources(tune.with_parameters(MergeTrial, spec=spec), {"cpu": spec.threads})
    parallel = 1 if recipe.search.searcher in GRADIENT else recipe.search.actors
    tuner = tune.Tuner(
        trainable,
        tune_config=TuneConfig(
            metric=VALUE,
            mode="min",
            search_alg=search,
            num_samples=-1,  # the script says when it is over
            max_concurrent_trials=parallel,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent.resolve()),
            verbose=0,
        ),
    )
    with _credentials_kept():
        tuner.fit()


@contextmanager
def _credentials_kept() -> Iterator[None]:
    """Tune would copy the driver's AWS_* variables into its actors' runtime environment, which Ray writes into its logs
    and shows on its dashboard. Every node has credentials of its own."""
    copied = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in copied if not name.startswith("AWS_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = copied


class _Progress:
    """A line of progress now and then."""

    def __init__(self, trials: int, echo: Echo) -> None:
        self._trials, self._echo = trials, echo
        self._best: tuple[int, float, int] | None = None  # (- rung, value, number)
        self._last = time.monotonic()

    def __call__(self, asked: Asked, trial: Trial) -> None:
        if asked.what == "trial" and trial.value is not None:
            rung = -1 if trial.rung is None else trial.rung  # more rows come before a lower value
            found = (-rung, trial.value, trial.number)
            self._best = min(self._best, found) if self._best else found
        if time.monotonic() - self._last < _QUIET_SECONDS:
            return
        self._last = time.monotonic()
        if asked.what == "trial":
            best = f", best {self._best[1]:.4f} (trial {self._best[2]})" if self._best else ""
            self._echo(f"  trial {asked.number} of {self._trials}{best}, {trial.seconds.get('total', 0.0):.2f} s each")
        else:
            self._echo(f"  {asked.what.replace('_', ' ')}: {asked.searcher}")
