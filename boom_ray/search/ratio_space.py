"""Sets of sampling ratios, the members that they stand for, and who of them is trained on. Pure: no ray, no torch.

A trial is a set of ratios. Its members are named by (ratio, copy) alone, so sets that share a ratio share the member,
which is trained once. ASHA (Li et al. 2020, arXiv 1810.05934) decides from the results so far which trial is trained
on: one of ``eta`` of those that a rung has seen goes to the next. Here trials are asked and told in rounds, so that a
search that is killed and resumed asks the same questions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from boom_ray.config import BoomError
from boom_ray.config.bags import Bags
from boom_ray.config.ratios import RATIO_STEP, RatioSearch

Job = tuple[int, int]  # number of a trial, rung
_MOST_SETS = 500_000


@dataclass(frozen=True)
class Slot:
    """One member that sets may hold; ``number`` is what its draw and identity follow from."""

    ratio: float
    copy: int
    number: int

    @property
    def label(self) -> str:
        return f"{100 * self.ratio:.4g} %" + (f" ({self.copy + 1})" if self.copy else "")


@dataclass(frozen=True)
class RatioSpace:
    """All members, and the sets of them (indices into ``slots``) in the order in which they are tried."""

    slots: tuple[Slot, ...]
    sets: tuple[tuple[int, ...], ...]

    @property
    def used(self) -> list[int]:
        """The slots that some set holds."""
        return sorted({i for chosen in self.sets for i in chosen})

    def ratios(self, number: int) -> list[float]:
        """Of the members of a set."""
        return [self.slots[i].ratio for i in self.sets[number]]


def ratio_space(settings: RatioSearch, bags: Bags, seed: int) -> RatioSpace:
    """The space of a recipe: its own ratios first where they lie in it, then all candidates once, then by chance.

    Raises:
        BoomError: the recipe's bags are not made by ratios, or there are more sets than can be listed.
    """
    if bags.kind not in ("subset", "bootstrap"):
        raise BoomError(f"bags.kind {bags.kind} makes one member each: ratios are searched for subset and bootstrap.")
    slots = tuple(
        Slot(ratio, copy, member_number(ratio, copy))
        for ratio in sorted(settings.ratios)
        for copy in range(settings.copies)
    )
    place = {(round(slot.ratio / RATIO_STEP), slot.copy): i for i, slot in enumerate(slots)}
    every = _all_sets(settings)
    random.Random(seed).shuffle(every)
    first = [tuple(sorted(bags.ratios)), tuple(sorted(settings.ratios))]
    known = [_grains(ratios) for ratios in first]
    every.sort(key=lambda grains: known.index(grains) if grains in known else len(known))  # stable: chance stays
    sets = [tuple(place[grain, grains[:k].count(grain)] for k, grain in enumerate(grains)) for grains in every]
    return RatioSpace(slots, tuple(sets[: settings.trials]))


def set_name(space: RatioSpace, slots: Sequence[int]) -> str:
    """What people call a set: ``{40 %, 80 %}``."""
    return "{" + ", ".join(space.slots[i].label for i in slots) + "}"


def member_number(ratio: float, copy: int) -> int:
    """Of the member of a ratio, the same in every search; above those of a recipe's own members."""
    return 10_000 * (copy + 1) + round(ratio / RATIO_STEP)


def _grains(ratios: Sequence[float]) -> tuple[int, ...]:
    """Ratios as whole numbers of the smallest difference: floats that print alike are alike."""
    return tuple(round(ratio / RATIO_STEP) for ratio in ratios)


def _all_sets(settings: RatioSearch) -> list[tuple[int, ...]]:
    grains, (low, high) = _grains(sorted(settings.ratios)), settings.members
    count = sum(math.comb(len(grains) + size - 1, size) for size in range(low, high + 1))
    if count > _MOST_SETS:
        raise BoomError(
            f"{count:,} sets of {low} to {high} of {len(grains)} ratios are too many to choose from. Give fewer "
            f"ratios, or a narrower range of members."
        )
    return [
        chosen
        for size in range(low, high + 1)
        for chosen in combinations_with_replacement(grains, size)
        if max(map(chosen.count, chosen)) <= settings.copies
    ]


def rung_shares(rungs: int, eta: int) -> list[float]:
    """Shares of a member's steps that it has been trained for at each rung; the last is all of them."""
    return [float(eta) ** (rung + 1 - rungs) for rung in range(rungs)]


def steps_at(share: float, steps: int, accumulation: int) -> int:
    """Batches of ``steps`` that a share of a member's training comes to: whole updates, and at least one."""
    return min(steps, max(1, math.ceil(share * steps / accumulation)) * accumulation)


def next_jobs(trials: int, rungs: int, eta: int, results: Mapping[Job, float | None], count: int) -> list[Job]:
    """Up to ``count`` jobs that come next, by what is known; empty when the search is over.

    A trial among the best ``1 / eta`` of its rung is trained on first (the highest rung before others), else the next
    trial begins at the lowest. When all have begun, the best of every rung that sent nobody on goes on, so that the
    search ends with a set that is trained to the end. A trial that failed counts as one that was beaten; ties go to
    the lower number.

    Args:
        results: the value of every job that is done, lower is better; None or NaN: it failed.
    """
    started, jobs = set(results), list[Job]()
    while len(jobs) < count:
        job = _promoted(rungs, eta, results, started) or _begun(trials, started)
        if job is None and not jobs:
            job = _finishing(rungs, results, started)
        if job is None:
            break
        jobs.append(job)
        started.add(job)
    return jobs


def _promoted(rungs: int, eta: int, results: Mapping[Job, float | None], started: set[Job]) -> Job | None:
    for rung in reversed(range(rungs - 1)):
        seen = sum(r == rung for _, r in results)
        for number in _ranked(rung, results)[: seen // eta]:
            if (number, rung + 1) not in started:
                return number, rung + 1
    return None


def _begun(trials: int, started: set[Job]) -> Job | None:
    number = sum(rung == 0 for _, rung in started)
    return (number, 0) if number < trials else None


def _finishing(rungs: int, results: Mapping[Job, float | None], started: set[Job]) -> Job | None:
    for rung in range(rungs - 1):
        ranked = _ranked(rung, results)
        if ranked and not any(r == rung + 1 for _, r in started):
            return ranked[0], rung + 1
    return None


def _ranked(rung: int, results: Mapping[Job, float | None]) -> list[int]:
    """Trials that a rung has judged, best first; without those that failed."""
    found = [(value, number) for (number, r), value in results.items() if r == rung and value is not None]
    return [number for value, number in sorted(pair for pair in found if math.isfinite(pair[0]))]
