"""What an update cost, beside a full retrain and one batch-level run on old and new rows.

Device-seconds are those of the manifests: wall time times the workers or devices that a stage held. Bytes are those
that were written; tokens those that were tokenised or trained on. Scoring and drift cost the same for every model and
stand apart. What has not been carried out is planned from what the run itself took: seconds per row of its members, and
reading and tokenising in proportion to the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from boom_ray.config import Recipe
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import Keys
from boom_ray.update.task import Job


@dataclass(frozen=True)
class Spent:
    """Device-seconds, tokens and bytes."""

    seconds: float = 0.0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.tokens + other.tokens, self.bytes + other.bytes)

    def times(self, factor: float) -> Spent:
        return Spent(self.seconds * factor, round(self.tokens * factor), round(self.bytes * factor))


def spent(manifest: Mapping[str, Any], cpus: int, parts: Mapping[str, Any] | None = None) -> Spent:
    """Of one artifact.

    Args:
        cpus: what a stage on ``all`` devices held.
        parts: manifest of an artifact whose files this one has taken over by a link; they are not counted.
    """
    meta = manifest["meta"]
    started, finished = meta.get("started", manifest["started"]), meta.get("finished", manifest["finished"])
    devices = meta.get("devices", meta.get("width", 1))
    seconds = (finished - started - meta.get("idle", 0.0)) * (cpus if devices == "all" else devices)
    tokens = meta["added"]["tokens"] if "added" in meta else meta.get("tokens", 0)
    linked = parts["bytes"] if parts else 0
    return Spent(max(0.0, seconds), int(tokens), max(0, manifest["bytes"] - linked))


def account(job: Job, retrained: Keys | None, cpus: int) -> dict[str, Any]:
    """The costs of an update, of a full retrain and of a batch-level run, as plain values.

    Args:
        retrained: keys of a full retrain that has been carried out; None: it is planned.
    """
    made = _update_stages(job, cpus)
    total = _sum(made)
    retrain, members = _retrain(job, retrained, cpus)
    single = _reading(job, cpus) + _members(job, [1.0], cpus)
    apart = {"scoring": job.keys.scores[job.keys.name], "drift": job.keys.drift}
    found = {
        "update": {"stages": {name: asdict(cost) for name, cost in made.items()}, **asdict(total)},
        "retrain": {"how": "planned" if retrained is None else "measured", "members": members, **asdict(retrain)},
        "batch_level": {"how": "planned", **asdict(single)},
        "apart": {name: asdict(_of(job.ledger, key, cpus)) for name, key in apart.items()},
    }
    for name, other in (("retrain", retrain), ("batch_level", single)):
        found[name]["share"] = total.seconds / other.seconds if other.seconds else None
    return found


def _update_stages(job: Job, cpus: int) -> dict[str, Spent]:
    keys, stand, ledger = job.keys, job.stand, job.ledger
    named: list[tuple[str, Key, Key | None]] = [
        ("new rows", keys.fresh, None),
        ("joint corpus", keys.corpus, stand.corpus),
        ("tokens of new rows", keys.tokens, stand.tokens),
        ("bag", keys.bags, None),
        ("member", keys.member, None),
        ("gram of all members", keys.everyone, None),
        ("merge of all members", keys.ensemble, None),
        ("gram", keys.pair, None),
        ("search", keys.search, None),
        ("bound on the drift", keys.bound, None),
        ("merge", keys.merge, None),
    ]
    wanted = {keys.everyone: keys.candidate == keys.ensemble, keys.ensemble: keys.candidate == keys.ensemble}
    wanted |= {keys.search: job.settings.weights == "searched", keys.bound: job.settings.max_drift is not None}
    return {name: _of(ledger, key, cpus, old) for name, key, old in named if wanted.get(key, True)}


def _of(ledger: Ledger, key: Key, cpus: int, parts: Key | None = None) -> Spent:
    if not ledger.has(key):
        return Spent()
    return spent(ledger.manifest(key), cpus, ledger.manifest(parts) if parts else None)


def _sum(parts: Mapping[str, Spent]) -> Spent:
    return sum(parts.values(), Spent())


def _rows(job: Job, key: Key) -> int:
    return sum(entry["rows"] for entry in job.ledger.read_json(key, "datasets.json"))


def _reading(job: Job, cpus: int) -> Spent:
    """Reading and tokenising old and new rows, in proportion to what the run's own took."""
    run, ledger = job.run, job.ledger
    factor = _rows(job, job.keys.corpus) / max(1, _rows(job, run.corpus))
    keys = dict.fromkeys((run.corpus, run.mined, run.tokens, run.bags))
    return sum((_of(ledger, key, cpus).times(factor) for key in keys), Spent())


def _members(job: Job, ratios: list[float], cpus: int) -> Spent:
    """Training members with these ratios on old and new rows, at the speed of the run's own members."""
    manifests = [job.ledger.manifest(key) for key in job.run.ensemble.values()]
    rows = sum(manifest["meta"]["rows"] for manifest in manifests)
    if not rows:
        return Spent()
    one_row = sum((spent(manifest, cpus) for manifest in manifests), Spent())
    counts = job.ledger.read_json(job.keys.bags, "counts.json")["datasets"]
    train = sum(dataset["train"] for dataset in counts.values())
    planned = sum(_trained_rows(job.recipe, ratio * train) for ratio in ratios)
    size = manifests[0]["bytes"]
    found = one_row.times(planned / rows)
    return Spent(found.seconds, found.tokens, size * len(ratios))


def _trained_rows(recipe: Recipe, rows: float) -> float:
    whole, most = rows * recipe.train.epochs, recipe.train.max_steps
    return whole if most is None else min(whole, most * recipe.train.batch_size)


def _retrain(job: Job, measured: Keys | None, cpus: int) -> tuple[Spent, int]:
    """A full retrain up to its merge, and its number of members."""
    keys, chosen = measured or job.run, job.recipe.merge.weights
    late = [keys.grams, keys.merges[chosen], *([keys.search] if chosen == "searched" else [])]
    after = sum((_of(job.ledger, key, cpus) for key in late), Spent())
    if measured is None:
        ratios = [rule.ratio for rule in job.run.rules]
        return _reading(job, cpus) + _members(job, ratios, cpus) + after, len(ratios)
    trained = sum((_of(job.ledger, key, cpus) for key in measured.ensemble.values()), Spent())
    return _reading(job, cpus) + trained + after, len(measured.ensemble)
