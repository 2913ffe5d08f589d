"""What an update's models are scored on: sets by what they tell, and scores that an earlier version has already."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from boom_ray.evaluate import sets as eval_sets
from boom_ray.ledger import Key, Ledger
from boom_ray.runs import Evaluation
from boom_ray.update.keys import Stand
from boom_ray.update.task import Job
from boom_ray.update.union import dataset_names

if TYPE_CHECKING:
    from boom_ray.evaluate.sets import EvalSet

GROUPS = {"old_id": "old in-domain", "ood": "out-of-domain", "new": "new domain"}
_DEV_TEXTS = 2000


def bring_scores(ledger: Ledger, stand: Stand, missing: Mapping[str, Key]) -> None:
    """Put the scores of base and current model where the scoring looks for what it has: it then adds the new sets."""
    known = {"base": stand.scores["base"], stand.score_name: stand.scores["current"]}
    for name, before in known.items():
        if name not in missing or not ledger.has(before):
            continue
        source, target = ledger.path(before) / "mteb", ledger.scratch("scores", missing[name].name) / "mteb"
        if source.is_dir() and not target.exists():
            temporary = target.with_name(f".mteb-{uuid.uuid4().hex[:8]}")
            shutil.copytree(source, temporary)
            os.rename(temporary, target)


def evaluation(job: Job) -> Evaluation:
    """What the versions are scored on, and the datasets that the new one was trained on."""
    asked = job.recipe.evaluate
    trained = tuple(dataset_names(job.path(job.keys.corpus)))
    named = (asked.benchmarks, asked.tasks, asked.prompts, asked.precision)
    return Evaluation(tuple(job.folders), asked.cap, trained, *named, strict=False)


def groups_of_sets(job: Job, found: Evaluation) -> dict[str, str]:
    """Every set's group: ``old_id`` of a dataset that was trained on before, ``new`` of the new data or in a folder of
    ``update.sets``, else ``ood``."""
    fresh = tuple(dataset_names(job.path(job.keys.fresh)))
    old = {s.name for s in found.sets(job.stand.trained) if s.domain == "in_domain"}
    new = {s.name for s in found.sets(fresh) if s.domain == "in_domain"}
    if job.settings.sets:
        new |= {s.name for s in eval_sets.find_sets(job.settings.sets, None, strict=False)}
    names = [s.name for s in found.sets(found.trained)]
    return {name: "old_id" if name in old else "new" if name in new else "ood" for name in names}


def old_sets(job: Job, found: Evaluation) -> list[EvalSet]:
    """What an owner of an index of the current version asks about: its searches, else all but the new domain."""
    groups = groups_of_sets(job, found)
    old = [s for s in found.sets(found.trained) if groups[s.name] != "new"]
    return [s for s in old if s.task_type in ("retrieval", "reranking")] or old


def dev_texts(job: Job) -> list[str]:
    """Queries and first positives of old dev rows (half A)."""
    from boom_ray.data.bagging import Draw, dev_rows
    from boom_ray.data.membership import corpus_rows
    from boom_ray.data.texts import read_texts

    rows = corpus_rows(job.path(job.stand.tokens))
    drawn = Draw.from_json(job.ledger.read_json(job.keys.bags, "draw.json"))
    chosen = np.concatenate([np.empty(0, np.int64), *dev_rows(rows, drawn, "a").values()])
    read = read_texts(job.path(job.stand.corpus), chosen[: _DEV_TEXTS // 2])
    return [text for row in read for text in (row["query"], row["pos"][0])]
