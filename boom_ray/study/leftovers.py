"""What a study no longer needs: merges, Gram matrices and averages of weights of finished conditions. Members stay."""

from __future__ import annotations

from collections.abc import Sequence

from boom_ray.ledger import Key, Ledger
from boom_ray.study.conditions import Case


def tidy(ledger: Ledger, listed: Sequence[Case]) -> None:
    """Delete what no open case of a study needs; ``listed``: all its cases."""
    waiting = [case for case in listed if not case.done(ledger.has)]
    kept = {key for case in waiting for key in _needed(case)}
    for key in dict.fromkeys(key for case in listed for key in _passing(case)):
        if key not in kept:
            ledger.drop(f"{key.kind}/{key.name}")


def _needed(case: Case) -> list[Key]:
    """Of what a case's training and merging may leave, that which its own scores are made from."""
    if case.merged:
        return [case.keys.grams, case.keys.models[case.model]]
    return [case.keys.models[case.model]] if case.condition.average else []


def _passing(case: Case) -> list[Key]:
    """All that a case's training and merging may leave, and that can be made again from its members."""
    own = [case.keys.grams, *case.keys.merges.values(), *case.keys.averages.values()]
    return [*own, *_passing(case.trunk)] if case.trunk else own
