"""What an update is compared with: the run's recipe with all its members on old and new rows, scored on the same sets.

Base and tokens are those that there are already; of an imported base nothing else could differ.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

from boom_ray.data.bagging import Draw
from boom_ray.ledger import Key
from boom_ray.pipeline import merge_point, search_members
from boom_ray.plan import Keys
from boom_ray.stages.members import gram_members, train_members
from boom_ray.stages.preparation import Run, due, task_on
from boom_ray.update.keys import retrain_keys
from boom_ray.update.scores import evaluation
from boom_ray.update.task import Job

NAME = "retrain"


def keys_of(job: Job) -> Keys:
    """The artifacts of the full retrain; the rows of old and new must have been joined."""
    entries = job.ledger.read_json(job.keys.corpus, "datasets.json")
    datasets = tuple((entry["name"], entry["task_type"]) for entry in entries if entry["rows"])
    return retrain_keys(job.recipe, job.keys, job.run, replace(job.world, datasets=datasets))


def score_key(job: Job, keys: Keys) -> Key:
    return keys.scores[f"merge-{job.recipe.merge.weights}"]


def retrained(job: Job) -> bool:
    """Whether the full retrain has been carried out and scored."""
    return job.has(job.keys.corpus) and job.has(score_key(job, keys_of(job)))


def retrain(job: Job) -> None:
    """Train, merge and score all members on old and new rows; what is there already is not made again."""
    resources = job.recipe.resources.model_copy(update={"min_members": None})
    recipe = job.recipe.model_copy(update={"resources": resources})
    run = Run(recipe, job.ledger, job.world, keys_of(job), job.echo)
    draw_bags(job, run)
    train_members(run)
    gram_members(run)
    if recipe.merge.weights == "searched":
        search_members(run)
    _merge(run)
    _score(job, run)


def draw_bags(job: Job, run: Run) -> None:
    """The bags of all members, with the dev rows of the update."""
    if run.has(run.keys.bags):
        return
    from boom_ray.data.core import draw_again
    from boom_ray.data.membership import corpus_rows, counts
    from boom_ray.data.rules import dataset_rules

    rows = corpus_rows(run.path(run.keys.tokens))
    before = Draw.from_json(job.ledger.read_json(job.keys.bags, "draw.json"))
    rules = dataset_rules(run.ledger.read_json(run.keys.tokens, "datasets.json"))
    weights = {name: rule.weight for name, rule in rules.items()}
    drawn = draw_again(rows, run.keys.rules, before, run.recipe.seed, weights)
    with run.ledger.stage(run.keys.bags) as stage:
        (stage.path / "draw.json").write_text(json.dumps(drawn.to_json(), indent=1))
        (stage.path / "counts.json").write_text(json.dumps(counts(rows, drawn), indent=1))


def _merge(run: Run) -> None:
    name = run.recipe.merge.weights
    if not due(run, run.keys.merges[name], f"full retrain: merging with {name} weights"):
        return
    from boom_ray.stages.tasks import FinalHandle

    FinalHandle(task_on(run)).merge(name, merge_point(run.recipe, run.ledger, run.keys, name))


def _score(job: Job, run: Run) -> None:
    key = score_key(job, run.keys)
    if run.has(key):
        return
    from boom_ray.stages.scoring import score_models

    found = evaluation(job)
    sets = found.sets(found.trained)
    job.echo(f"[{time.strftime('%H:%M:%S')}] full retrain: scoring on {len(sets)} sets")
    score_models(task_on(run, sets, found.trained), {f"merge-{run.recipe.merge.weights}": key}, job.echo)
