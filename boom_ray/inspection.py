"""A run's corpus as data: what became of its rows, which batches a member gets, what its bag does not hold.

Reads the ledger and starts nothing; the commands below ``boom-ray corpus`` print what is returned here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError, Recipe
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys


@dataclass(frozen=True)
class Run:
    """A run that may or may not have been carried out."""

    recipe: Recipe
    ledger: Ledger
    keys: Keys

    def member(self, index: int) -> int:
        """``index``, checked.

        Raises:
            BoomError: there is no such member.
        """
        if not 0 <= index < len(self.keys.members):
            raise BoomError(f"there is no member {index}: this recipe has members 0 to {len(self.keys.members) - 1}.")
        return index


def corpus(run: Run) -> dict[str, Any]:
    """Per dataset what was read, dropped and kept, tokens and lengths; per member its accounts of all rows.

    Raises:
        BoomError: the corpus or its bags have not been made yet.
    """
    from boom_ray.train.rows import accounts, member_plan

    ledger, keys = run.ledger, run.keys
    ledger.manifest(keys.corpus)
    told = ledger.read_json(keys.corpus, "counts.json")
    rules = {entry["name"]: entry for entry in ledger.read_json(keys.mined, "datasets.json")}
    lengths = ledger.manifest(keys.tokens)["meta"]["lengths"]
    ledger.manifest(keys.bags)
    bags = ledger.read_json(keys.bags, "counts.json")["datasets"]
    datasets = {}
    for name, counts in told.items():
        dev = {half: bags.get(name, {}).get(half, 0) for half in ("dev_a", "dev_b")}
        datasets[name] = {**rules.get(name, {}), **counts, **dev, **lengths.get(name, {})}
    members = []
    for index, rule in enumerate(run.keys.rules):
        plan = member_plan(run.recipe, ledger, keys, index)
        in_bag = {name: dataset["members"][index] for name, dataset in bags.items()}
        told_of = accounts(ledger, keys, index, plan)
        shown = {name: {**account, **in_bag.get(name, {})} for name, account in told_of.items()}
        members.append({"name": f"member-{index}", "bag": rule.label, "steps": len(plan.batches), "datasets": shown})
    return {"run": str(ledger), "datasets": datasets, "members": members}


def schedule(run: Run, member: int) -> dict[str, Any]:
    """Every step of a member: step, epoch, dataset, rows, digest of their order; and totals.

    Raises:
        BoomError: there is no such member, or its bag has not been drawn yet.
    """
    from boom_ray.data.batches import order_digest, row_keys, run_digest
    from boom_ray.train.rows import member_plan, read_rows

    own = read_rows(run.ledger, run.keys)
    plan = member_plan(run.recipe, run.ledger, run.keys, run.member(member))
    steps: list[dict[str, Any]] = [
        {
            "step": step,
            "epoch": batch.epoch,
            "dataset": batch.dataset,
            "rows": len(batch.rows),
            "in_batch": batch.in_batch,
            "digest": order_digest(row_keys(own.ids[batch.rows])),
        }
        for step, batch in enumerate(plan.batches)
    ]
    batches, rows = Counter[int](), Counter[int]()
    for batch in plan.batches:
        counts = Counter(own.dataset[batch.rows].tolist())
        batches.update(counts.keys())
        rows.update(counts)
    per_dataset = {
        name: {"steps": batches[i], "rows": rows[i], "dropped": plan.dropped.get(name, 0)}
        for i, name in enumerate(own.names)
    }
    totals = {
        "steps": len(steps),
        "rows": sum(rows.values()),
        "dropped": sum(plan.dropped.values()),
        "ended_early": plan.ended_early,
        "digest": run_digest(step["digest"] for step in steps),
    }
    name = {"member": f"member-{member}", "bag": run.keys.rules[member].label, "schedule": run.recipe.train.schedule}
    return {**name, "steps": steps, "datasets": per_dataset, "totals": totals}


def out_of_bag(run: Run, member: int, dataset: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows, as text, that a member has never seen and that are no dev rows; in the order of the corpus.

    Raises:
        BoomError: there is no such member or dataset, or its bag has not been drawn yet.
    """
    from boom_ray.data.bagging import out_of_bag_rows
    from boom_ray.data.texts import read_texts
    from boom_ray.train.rows import read_draw, read_rows

    rows, drawn = read_rows(run.ledger, run.keys), read_draw(run.ledger, run.keys)
    if dataset is not None and dataset not in rows.names:
        raise BoomError(f"the corpus has no dataset '{dataset}': it has {', '.join(rows.names)}.")
    found = out_of_bag_rows(rows, drawn, drawn.bags[run.member(member)])
    chosen = found.values() if dataset is None else [found[dataset]]
    return read_texts(_corpus(run), np.concatenate([np.empty(0, np.int64), *chosen]))


def _corpus(run: Run) -> Path:
    return run.ledger.path(run.keys.mined)
