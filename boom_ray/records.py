"""What a run directory remembers of members beside their artifacts: the width they were started with, and failures
that were final. Small files that a person can read and delete."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from boom_ray.config import Recipe
from boom_ray.failures import Failure
from boom_ray.ledger import Key, Ledger


@dataclass(frozen=True)
class Frozen:
    """What a member's bits depend on beside its identity: workers, and threads of each.

    ``seconds`` from the moment that it had its workers to its artifact, where nothing interrupted it.
    """

    width: int
    threads: int
    seconds: float | None = None


def frozen(ledger: Ledger, key: Key) -> Frozen | None:
    """What a member was started with, if it ever was."""
    file = ledger.root / "placement" / f"{key.name}.json"
    if not file.is_file():
        return None
    return Frozen(**json.loads(file.read_text()))


def freeze(ledger: Ledger, key: Key, chosen: Frozen) -> None:
    ledger.write_text(f"placement/{key.name}.json", json.dumps(asdict(chosen)) + "\n")


def note_seconds(ledger: Ledger, key: Key, seconds: float) -> None:
    """How long a member took that has landed, start-up and all."""
    chosen = frozen(ledger, key)
    if chosen is not None:
        freeze(ledger, key, replace(chosen, seconds=seconds))


def final_failure(ledger: Ledger, key: Key) -> Failure | None:
    """Why a member that is not there will not be made, if it failed for good."""
    file = ledger.root / "failures" / f"{key.name}.json"
    return Failure(**json.loads(file.read_text())) if file.is_file() and not ledger.has(key) else None


def record_failure(ledger: Ledger, key: Key, failure: Failure) -> None:
    ledger.write_text(f"failures/{key.name}.json", json.dumps(asdict(failure), indent=1) + "\n")


def member_seconds(meta: Mapping[str, Any]) -> float:
    """Device-seconds that a member's training took, by its manifest; those between an interruption and the next start
    are left out."""
    return float((meta["finished"] - meta["started"] - meta.get("idle", 0.0)) * meta["width"])


def forget(ledger: Ledger, keys: Sequence[Key]) -> None:
    """Plan members that are not finished anew: their widths, and what failed for good, count no more."""
    for key in keys:
        if not ledger.has(key):
            for folder in ("placement", "failures"):
                ledger.drop(f"{folder}/{key.name}.json")


def drop_checkpoints(ledger: Ledger, members: Sequence[Key]) -> None:
    """Delete the checkpoints of all but the members that have not landed, and of those that a search of ratios has
    stopped: of others nobody goes on from them."""
    wanted = {key.name for key in members if not ledger.has(key)}
    wanted |= {manifest["meta"]["member"] for _, manifest in ledger.manifests("rungs")}
    for name in ledger.children("scratch/members"):
        if name not in wanted and not name.endswith(".jsonl"):
            ledger.drop(f"scratch/members/{name}/checkpoints")


def lost_members(recipe: Recipe, ledger: Ledger, members: Sequence[Key]) -> tuple[int, ...]:
    """Numbers of the members that a run goes on without: failed for good, with ``resources.min_members`` others left.

    Where all are needed, or too few are left, nothing is lost: the run tries them again.
    """
    failed = tuple(i for i, key in enumerate(members) if final_failure(ledger, key) is not None)
    enough = recipe.resources.min_members
    return failed if enough is not None and len(members) - len(failed) >= enough else ()
