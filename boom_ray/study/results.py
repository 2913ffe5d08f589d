"""What a study has found so far, from its small artifacts alone: ``conditions`` and ``scores``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.config import Base, Recipe
from boom_ray.config.study import Condition
from boom_ray.evaluate.compare import Scored, Task
from boom_ray.evaluate.scored import read_scored
from boom_ray.ledger import Ledger
from boom_ray.study.conditions import Case
from boom_ray.study.finding import Found


@dataclass(frozen=True)
class SeedResult:
    """One condition with one seed.

    Attributes:
        scored: its model's scores, with what they were made from.
        passes: rows trained by all its members / training rows of the corpus: its cost.
        device_seconds: of training all its members, as if no other condition shared them.
        ratios: of its members.
        weights: that they were merged with; () where the model is a member or an average.
        scale: factor on the merged task vector.
        cosine: of the members' task vectors, [members][members]; () for one member.
        found: of searched weights: ``value``, ``trials``, ``weights``, ``scale``; None elsewhere.
        trained: identities of all members that were trained for it.
    """

    seed: int
    scored: Scored
    passes: float
    device_seconds: float
    ratios: tuple[float, ...]
    weights: tuple[float, ...]
    scale: float
    cosine: tuple[tuple[float, ...], ...]
    found: Mapping[str, Any] | None
    trained: frozenset[str]


@dataclass(frozen=True)
class ConditionResult:
    """A condition with the seeds that are finished, at least one, and how many the study asks for."""

    condition: Condition
    seeds: tuple[SeedResult, ...]
    wanted: int


@dataclass(frozen=True)
class StudyResult:
    """All that a study's report shows.

    Attributes:
        name: of the recipe.
        base: scores of the base.
        base_model: what people call the base.
        tasks: of the evaluation sets, with domain ``in_domain`` or ``out_of_domain``.
        rows: training rows of the corpus.
        cap: texts per set at most, as in the recipe's ``evaluate.cap``.
        conditions: in the recipe's order, those with a finished seed.
        pending: names of conditions, with their seeds, that are not finished.
        command: the exact command that made it.
    """

    name: str
    base: Scored
    base_model: str
    tasks: tuple[Task, ...]
    rows: int
    cap: Any
    conditions: tuple[ConditionResult, ...]
    pending: tuple[str, ...]
    command: str


def read_results(recipe: Recipe, ledger: Ledger, listed: Sequence[Case], command: str) -> StudyResult | None:
    """All that has been found, from the artifacts of kinds ``conditions`` and ``scores`` alone; None: nothing yet.

    Args:
        listed: all cases of the recipe (:func:`boom_ray.study.conditions.cases`); command: the one that made it.
    """
    done = [case for case in listed if case.done(ledger.has)]
    if not done:
        return None
    base, tasks = read_scored(ledger, done[0].keys.scores["base"], "base")
    conditions = (_condition_result(recipe, ledger, condition, done) for condition in recipe.study.conditions)
    return StudyResult(
        name=recipe.name,
        base=base,
        base_model=base_name(recipe.base),
        tasks=tuple(tasks),
        rows=Found.read(ledger, done[0]).rows,
        cap=recipe.evaluate.cap,
        conditions=tuple(result for result in conditions if result.seeds),
        pending=tuple(case.name for case in listed if case not in done),
        command=command,
    )


def _condition_result(recipe: Recipe, ledger: Ledger, condition: Condition, done: Sequence[Case]) -> ConditionResult:
    seeds = tuple(_seed_result(ledger, case) for case in done if case.condition == condition)
    return ConditionResult(condition, seeds, recipe.study.seeds_of(condition))


def _seed_result(ledger: Ledger, case: Case) -> SeedResult:
    found = Found.read(ledger, case)
    return SeedResult(
        seed=case.seed,
        scored=read_scored(ledger, case.scores, case.name)[0],
        passes=found.passes,
        device_seconds=found.device_seconds,
        ratios=tuple(found.ratios),
        weights=tuple(found.weights),
        scale=found.scale,
        cosine=tuple(tuple(row) for row in found.cosine),
        found=found.found,
        trained=frozenset(member.identity for member in case.trained),
    )


def base_name(base: Base) -> str:
    """What people call a base: its name on the hub, or the end of its directory."""
    if base.model is None:
        return "a base built from a config"
    name = "/".join(Path(base.model).parts[-2:])
    return f"{name}, its first {base.layers} layers" if base.layers else name
