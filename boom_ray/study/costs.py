"""What a study is going to train, before it starts: members, rows, device-hours, and what conditions share. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from boom_ray.config import Recipe
from boom_ray.costs import epoch_of, measured_speed, run_size
from boom_ray.data.bag_rules import BagRule, shares
from boom_ray.data.bagging import dev_count
from boom_ray.data.rules import dataset_rules
from boom_ray.ledger import Key, Ledger
from boom_ray.study.conditions import Case


@dataclass(frozen=True)
class MemberCost:
    """One member: its bag, how it is trained, for which conditions; ``rows`` and ``hours`` where they are known."""

    key: Key
    bag: str
    seed: int
    passes: float
    schedule: str
    conditions: tuple[str, ...]
    done: bool
    rows: int | None
    hours: float | None


def member_costs(chosen: Sequence[Case], ledger: Ledger) -> list[MemberCost]:
    """The members of all cases that are not finished, each once, in the order in which they are needed."""
    waiting = [case for case in chosen if not case.done(ledger.has)]
    if not waiting:
        return []
    sizes = training_sizes(waiting[0], ledger)
    speed = measured_speed(ledger, replace(waiting[0].keys, base=waiting[0].base), waiting[0].recipe)
    users: dict[Key, list[str]] = {}
    first: dict[Key, tuple[Case, BagRule]] = {}
    for case in waiting:
        for member, made_by in case.trained.items():
            users.setdefault(member, []).append(case.condition.name)
            first.setdefault(member, made_by)
    found = []
    for member, (case, rule) in first.items():
        rows = _rows(case, ledger, rule, sizes) if sizes is not None else None
        hours = speed.seconds(rows, 1) / 3600 if speed and rows else None
        train = case.recipe.train
        how = (rule.label, case.seed, train.epochs, train.schedule, tuple(users[member]))
        found.append(MemberCost(member, *how, ledger.has(member), rows, hours))
    return found


def training_sizes(case: Case, ledger: Ledger) -> dict[str, int] | None:
    """Training rows by dataset; None while there are no tokens."""
    if not ledger.has(case.keys.tokens):
        return None
    dev = case.recipe.corpus.dev
    datasets = ledger.read_json(case.keys.tokens, "datasets.json")
    return {d["name"]: d["rows"] - dev_count(d["rows"], dev.fraction, dev.min_rows) for d in datasets}


def _rows(case: Case, ledger: Ledger, rule: BagRule, sizes: Mapping[str, int]) -> int:
    """That a member is trained on, in all its passes; of a Poisson bootstrap, on the average."""
    rules = dataset_rules(ledger.read_json(case.keys.tokens, "datasets.json"))
    held = {name: size for name, size in sizes.items() if rule.holds(name)}
    parts = shares(rule, held, {name: r.weight for name, r in rules.items()})
    drawn = {name: round(parts[name] * size) for name, size in held.items()}
    return run_size(case.recipe, epoch_of(case.recipe, ledger, case.keys, drawn))[0]


def plan_lines(recipe: Recipe, chosen: Sequence[Case], ledger: Ledger) -> list[str]:
    """What would be done now, member by member, and in all."""
    waiting = [case for case in chosen if not case.done(ledger.has)]
    if not waiting:
        return [f"{recipe.name}: all {len(chosen)} conditions (seeds counted) are done."]
    members = member_costs(chosen, ledger)
    todo = [member for member in members if not member.done]
    models = {case.scores for case in waiting if not ledger.has(case.scores)}
    lines = [f"{recipe.name}: {len(waiting)} of {len(chosen)} conditions (seeds counted) to do"]
    lines.append(f"  {'member':>16} {'seed':>4} {'passes':>6} {'schedule':18} {'rows':>9} {'device-h':>8}  for")
    lines += [_line(member) for member in members]
    asked = sum(len(case.trained) for case in waiting)
    lines.append(
        f"{len(todo)} members to train, {len(models)} models to score; without sharing members between conditions it "
        f"would be {asked} members"
    )
    return [*lines, _total(todo)]


def _line(member: MemberCost) -> str:
    rows = "" if member.rows is None else f"{member.rows:,}"
    hours = "" if member.hours is None else f"{member.hours:.3f}"
    state = "x" if member.done else "-"
    return (
        f"{state} {member.bag:>16} {member.seed:>4} {member.passes:>6g} {member.schedule:18} {rows:>9} {hours:>8}  "
        f"{', '.join(member.conditions)}"
    )


def _total(todo: Sequence[MemberCost]) -> str:
    if not todo:
        return "x trained already"
    rows = [member.rows for member in todo if member.rows is not None]
    hours = [member.hours for member in todo if member.hours is not None]
    if len(rows) < len(todo):
        return "- to train; rows are known once the corpus has been made"
    if len(hours) < len(todo):
        return f"- to train: {sum(rows):,} rows; the time is known once a member has been trained here"
    return f"- to train: {sum(rows):,} rows, about {math.fsum(hours):.2f} device-hours, scoring not counted"
