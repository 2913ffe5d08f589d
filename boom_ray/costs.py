"""What each step of a plan will take, as exactly as the ledger allows: measured where something like it has run,
counted where the corpus is known, else left open rather than guessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boom_ray.config import Recipe
from boom_ray.data.rules import dataset_rules
from boom_ray.data.schedule import SMALLEST_TAIL, Schedule, epoch_size, part_of, split_passes
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import MERGES, Cost, Keys
from boom_ray.records import frozen
from boom_ray.resources import Measured, Speed, fit_speed

_WARM_STEPS = 20  # that a warm-up has at least where it stands for members: a few steps are chance


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
    speed = measured_speed(ledger, keys, recipe)
    for index in keys.ensemble:
        epoch = epoch_of(recipe, ledger, keys, _drawn(counts, index)) if counts else None
        costs[f"member-{index}"] = _member_cost(recipe, epoch, tokens, corpus_rows, speed)
    members = len(keys.ensemble)
    costs["gram"] = Cost(bytes=size and size * (members + 1))
    costs["search"] = Cost(steps=recipe.search.trials)
    for name in MERGES:
        costs[f"merge-{name}"] = Cost(bytes=size and size * (members + 2))
    costs["publish"] = Cost(bytes=size)
    return costs


def _drawn(counts: Mapping[str, Any], index: int) -> dict[str, int]:
    """Rows of a member's bag by dataset."""
    return {name: dataset["members"][index]["drawn"] for name, dataset in counts["datasets"].items()}


def epoch_of(recipe: Recipe, ledger: Ledger, keys: Keys, drawn: Mapping[str, int]) -> tuple[int, int]:
    """(rows, steps) of an epoch over a bag of so many rows by dataset, as the schedule cuts it into batches."""
    rules = dataset_rules(ledger.read_json(keys.tokens, "datasets.json"))
    smallest = SMALLEST_TAIL if recipe.train.tail == "keep" else None
    return epoch_size(Schedule(recipe.train.schedule, recipe.train.batch_size, smallest, rules), drawn)


def _member_cost(
    recipe: Recipe,
    epoch: tuple[int, int] | None,
    tokens: int | None,
    corpus_rows: int | None,
    speed: Speed | None,
) -> Cost:
    if epoch is None:
        return Cost(steps=recipe.train.max_steps)
    rows, steps = run_size(recipe, epoch)
    return Cost(
        rows=rows,
        tokens=round(tokens * rows / corpus_rows) if tokens and corpus_rows else None,
        steps=steps,
        device_hours=speed.seconds(rows, 1) / 3600 if speed else None,
    )


def run_size(recipe: Recipe, epoch: tuple[int, int]) -> tuple[int, int]:
    """(rows, steps) of a member's whole training, of those of an epoch; a part of one has its share of the rows."""
    whole, rest = split_passes(recipe.train.epochs)
    steps = whole * epoch[1] + (part_of(epoch[1], rest) if rest else 0)
    steps = steps if recipe.train.max_steps is None else min(steps, recipe.train.max_steps)
    return round(epoch[0] * steps / max(1, epoch[1])), steps


def _corpus_rows(ledger: Ledger, keys: Keys) -> int | None:
    if not ledger.has(keys.corpus):
        return None
    return sum(d["rows"] for d in ledger.read_json(keys.corpus, "datasets.json"))


def measured_speed(ledger: Ledger, keys: Keys, recipe: Recipe) -> Speed | None:
    """Rows per second of one worker, and what width costs, as members on this base and these tokens have shown.

    Before any has been trained a warm-up of the base that was long enough speaks for them, a worker's share by threads.
    None: nothing is known.
    """
    members = [
        _measured(ledger, manifest)
        for _, manifest in ledger.manifests("members")
        if _names(manifest["inputs"]) == {keys.base.name, keys.tokens.name} and manifest["meta"].get("measured")
    ]
    if members or not ledger.has(keys.base):
        return fit_speed(members)
    meta = ledger.manifest(keys.base)["meta"]
    if meta.get("steps", 0) < _WARM_STEPS or not meta.get("measured"):
        return None
    alone = _seconds(meta) * meta["threads"] / recipe.resources.cpus_per_worker
    return fit_speed([Measured(1, meta["rows"], alone)])


def _names(inputs: Mapping[str, str]) -> set[str]:
    """Of the artifacts that one was made of, wherever the run directory was then."""
    return {Path(path).name for path in inputs.values()}


def _measured(ledger: Ledger, manifest: Mapping[str, Any]) -> Measured:
    """What a finished member tells; its start-up only where it was not interrupted."""
    meta, seconds = manifest["meta"], _seconds(manifest["meta"])
    known = frozen(ledger, Key(manifest["kind"], manifest["label"], manifest["identity"]))
    beside = max(0.0, known.seconds - seconds) if known and known.seconds else None
    return Measured(meta["width"], meta["rows"], seconds, beside)


def _seconds(meta: Mapping[str, Any]) -> float:
    """Of all steps, as long as they are when warm."""
    return meta["steps"] * meta["measured"]["step_seconds"]


def _model_bytes(recipe: Recipe, ledger: Ledger, keys: Keys) -> int | None:
    """Bytes of one float32 model."""
    if ledger.has(keys.start):
        files = ledger.manifest(keys.start)["files"]
        return sum(entry["bytes"] for name, entry in files.items() if name.endswith(".safetensors"))
    if recipe.base.model and Path(recipe.base.model).is_dir():
        return sum(p.stat().st_size for p in Path(recipe.base.model).glob("*.safetensors")) or None
    return None
