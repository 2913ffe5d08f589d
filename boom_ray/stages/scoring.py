"""The scores of a run: all its models on all sets, and on both dev halves, as one queue."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from boom_ray.config import BoomError, Recipe
from boom_ray.data.batches import DrawSettings
from boom_ray.evaluate.board import Job
from boom_ray.evaluate.crew import Told
from boom_ray.evaluate.queue import anywhere, at_hand, score_jobs
from boom_ray.evaluate.results import defined
from boom_ray.evaluate.worker import ModelToScore, Work
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import Keys
from boom_ray.stages.final import FinalTask

if TYPE_CHECKING:
    from boom_ray.encoder import Encoder

_KEPT = ("name", "task_type", "domain", "metric", "language", "benchmark")


def score_models(task: FinalTask, due: Mapping[str, Key], say: Callable[[str], None]) -> None:
    """Score models (name to the key of their scores); each is committed as soon as all its scores are there.

    Raises:
        BoomError: sets that could not be scored; models without such are committed, and no score is lost.
    """
    ledger = Ledger(task.root)
    models = tuple(_model(task, ledger, name, key) for name, key in due.items())
    work = Work(models, tuple(anywhere(task.sets)), task.recipe.evaluate.chunk_tokens, DevLosses(task))
    scores = at_hand(work)
    entries = [[s for s, entry in enumerate(task.sets) if entry.name not in known] for known in scores]
    jobs = [Job(m, s) for m, missing in enumerate(entries) for s in (*missing, len(task.sets))]
    landing = _Landing(task, due, scores, say)
    score_jobs(work, jobs, landing.told)
    if landing.failed:
        raise BoomError(
            f"{len(landing.failed)} scores could not be made; the others are kept.\n  " + "\n  ".join(landing.failed)
        )


def _model(task: FinalTask, ledger: Ledger, name: str, key: Key) -> ModelToScore:
    model = task.keys.models[name]
    results = ledger.scratch("scores", key.name) / "mteb"  # a known place: scores of a run that was killed count
    label = f"{task.recipe.name}/{name}"
    return ModelToScore(str(ledger.path(model)), str(results), label, model.identity, task.trained)


class DevLosses:
    """A model's losses by dataset on both dev halves, computed where the model is loaded."""

    def __init__(self, task: FinalTask) -> None:
        self._root: str = task.root
        self._keys: Keys = task.keys
        self._recipe: Recipe = task.recipe

    def __call__(self, encoder: Encoder) -> dict[str, dict[str, float]]:
        from boom_ray.search.objective import dev_batches, dev_losses
        from boom_ray.train.rows import read_draw

        ledger, recipe = Ledger(self._root), self._recipe
        drawn = read_draw(ledger, self._keys)
        settings = DrawSettings(recipe.seed, recipe.train.hard_negatives)
        losses = {}
        for half in ("a", "b"):
            batches = dev_batches(ledger.path(self._keys.tokens), drawn, half, recipe.search.max_rows, settings)
            losses[half] = dev_losses(
                encoder.backbone, batches, encoder.pooling, encoder.pad_id, recipe.train.temperature
            )
        return losses


class _Landing:
    """Takes what has ended and commits each model whose scores are all there."""

    def __init__(
        self, task: FinalTask, due: Mapping[str, Key], scores: list[dict[str, float]], say: Callable[[str], None]
    ) -> None:
        self._task, self._due, self._scores, self._say = task, list(due.items()), scores, say
        self._dev: list[dict[str, Any] | None] = [None] * len(due)
        self._ended: list[list[Told]] = [[] for _ in due]
        self.failed: list[str] = []

    def told(self, end: Told) -> None:
        number, sets = end.job.model, self._task.sets
        name = self._due[number][0]
        what = sets[end.job.entry].name if end.job.entry < len(sets) else "dev losses"
        self._ended[number].append(end)
        if end.error:
            self.failed.append(f"{name} on {what}: {type(end.error).__name__}: {str(end.error).splitlines()[0][:300]}")
            return
        if end.job.entry == len(sets):
            self._dev[number] = end.value
        else:
            score = self._scores[number][what] = defined(end.value)
            done = sum(map(len, self._scores))
            self._say(f"  {name}: {what} {100 * score:.2f} ({done} of {len(self._due) * len(sets)})")
        if self._dev[number] is not None and len(self._scores[number]) == len(sets):
            self._commit(number)

    def _commit(self, number: int) -> None:
        name, key = self._due[number]
        task, ledger = self._task, Ledger(self._task.root)
        scratch = ledger.scratch("scores", key.name)
        with ledger.stage(key, inputs={"model": task.keys.models[name].identity}) as stage:
            if (scratch / "mteb").is_dir():
                shutil.copytree(scratch / "mteb", stage.path / "mteb", ignore=shutil.ignore_patterns(".*"))
            stage.meta["sets"] = [{field: getattr(entry, field) for field in _KEPT} for entry in task.sets]
            ordered = {entry.name: self._scores[number][entry.name] for entry in task.sets}
            stage.meta.update(scores=ordered, dev=self._dev[number], **_times(self._ended[number]))
        ledger.drop(f"scratch/scores/{key.name}")


def _times(ended: list[Told]) -> dict[str, float]:
    """When a model's scoring began and ended, and how many workers were busy with it on the average."""
    began, finished = min(end.began for end in ended), max(end.finished for end in ended)
    busy = max(end.seconds for end in ended)
    return {"started": began, "finished": finished, "devices": busy / max(finished - began, 1e-9)}
