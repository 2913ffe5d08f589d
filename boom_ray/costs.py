"""What each step of a plan will take, as exactly as the ledger allows: measured where something like it has run,
counted where the corpus is known, else left open rather than guessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boom_ray.config import Recipe
from boom_ray.data.rules import dataset_rules
from boom_ray.data.schedule import SMALLEST_TAIL, Schedule, epoch_size
from boom_ray.ledger import Ledger
from boom_ray.plan import MERGES, Cost, Keys


def estimate(recipe: Recipe, ledger: Ledger, keys: Keys) -> dict[str, Cost]:
    """Costs by step name."""
    costs: dict[str, Cost] = {}
    size = _model_bytes(recipe, ledger, keys)
    drawn = ledger.has(keys.bags) and ledger.has(keys.tokens)
    counts = ledger.read_json(keys.bags, "counts.json") if drawn else None
    tokens = ledger.manifest(keys.tokens)["meta"].get("tokens") if ledger.has(keys.tokens) else None
    corpus_rows = _corpus_rows(ledger, keys)
    costs["corpus"] = Cost(rows=corpus_rows)
    costs["mine"] = Cost(rows=corpus_rows)
    costs["tokens"] = Cost(rows=corpus_rows, tokens=tokens)
    costs["start"] = Cost(bytes=size)
    if recipe.base.build:
        costs["warm base"] = Cost(
            rows=recipe.base.build.warm_steps * recipe.train.batch_size, steps=recipe.base.build.warm_steps
        )
    speed = _seconds_per_row(ledger, keys)
    for index in range(len(keys.members)):
        epoch = _epoch(recipe, ledger, keys, counts, index) if counts else None
        costs[f"member-{index}"] = _member_cost(recipe, epoch, tokens, corpus_rows, speed)
    members = len(keys.members)
    costs["gram"] = Cost(bytes=size and size * (members + 1))
    costs["search"] = Cost(steps=recipe.search.trials)
    for name in MERGES:
        costs[f"merge-{name}"] = Cost(bytes=size and size * (members + 2))
    costs["publish"] = Cost(bytes=size)
    return costs


def _epoch(recipe: Recipe, ledger: Ledger, keys: Keys, counts: Mapping[str, Any], index: int) -> tuple[int, int]:
    """(rows, steps) of a member's epoch, as the schedule cuts its bag into batches."""
    rules = dataset_rules(ledger.read_json(keys.tokens, "datasets.json"))
    smallest = SMALLEST_TAIL if recipe.train.tail == "keep" else None
    drawn = {name: dataset["members"][index]["drawn"] for name, dataset in counts["datasets"].items()}
    return epoch_size(Schedule(recipe.train.schedule, recipe.train.batch_size, smallest, rules), drawn)


def _member_cost(
    recipe: Recipe,
    epoch: tuple[int, int] | None,
    tokens: int | None,
    corpus_rows: int | None,
    seconds_per_row: float | None,
) -> Cost:
    if epoch is None:
        return Cost(steps=recipe.train.max_steps)
    rows, steps = (count * recipe.train.epochs for count in epoch)
    if recipe.train.max_steps is not None and steps > recipe.train.max_steps:
        rows = round(rows * recipe.train.max_steps / steps)
        steps = recipe.train.max_steps
    return Cost(
        rows=rows,
        tokens=round(tokens * rows / corpus_rows) if tokens and corpus_rows else None,
        steps=steps,
        device_hours=rows * seconds_per_row / 3600 if seconds_per_row else None,
    )


def _corpus_rows(ledger: Ledger, keys: Keys) -> int | None:
    if not ledger.has(keys.corpus):
        return None
    return sum(d["rows"] for d in ledger.read_json(keys.corpus, "datasets.json"))


def _seconds_per_row(ledger: Ledger, keys: Keys) -> float | None:
    """Device-seconds per row, measured on the newest member or warm-up of this run directory."""
    finished = []
    for key in (*keys.members, keys.base):
        if ledger.has(key):
            meta = ledger.manifest(key)["meta"]
            if meta.get("rows"):
                devices = meta.get("width", 1) * (meta.get("threads", 1) if key == keys.base else 1)
                finished.append((meta["finished"], (meta["finished"] - meta["started"]) * devices / meta["rows"]))
    return max(finished)[1] if finished else None


def _model_bytes(recipe: Recipe, ledger: Ledger, keys: Keys) -> int | None:
    """Bytes of one float32 model."""
    if ledger.has(keys.start):
        files = ledger.manifest(keys.start)["files"]
        return sum(entry["bytes"] for name, entry in files.items() if name.endswith(".safetensors"))
    if recipe.base.model and Path(recipe.base.model).is_dir():
        return sum(p.stat().st_size for p in Path(recipe.base.model).glob("*.safetensors")) or None
    return None
