"""Closed-form merges that every search has to beat, and the order in which a whole search is judged. Pure.

ratio (BOOM: weight = share of the corpus), uniform, the best single member, LM-Cocktail's softmax of losses, greedy
soup, Model Stock. They are judged on the half that is searched on and, with the found point, on the half that is
reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from boom_ray.config import BoomError
from boom_ray.search.points import Point, even_point
from boom_ray.search.searchers import Asked, Script, SearchPlan, searching
from boom_ray.search.trial_log import Trial, best_trial, spent_seconds

COCKTAIL_TEMPERATURE = 5.0  # LM-Cocktail's own default (arXiv 2311.13534)
BASE, SEARCHED = "base", "searched"


@dataclass(frozen=True)
class DescentPlan:
    """A gradient search: trials one after the other, each from the parameters of the last."""

    searcher: str
    trials: int
    budget: float | None = None


@dataclass(frozen=True)
class Setup:
    """A whole search: ``plan`` and what its baselines are made from.

    Attributes:
        method: of the uniform and the ratio merge; ratios: of the members' bags; linear: whether there are two members
            or more, without which a soup and Model Stock have no meaning.
    """

    plan: SearchPlan | DescentPlan
    method: str
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class Baseline:
    """A merge of the table. ``point`` is None for the base itself."""

    name: str
    point: Point | None
    how: str


@dataclass(frozen=True)
class Row:
    """A baseline as it was judged, on half A and half B."""

    baseline: Baseline
    a: Trial
    b: Trial


@dataclass(frozen=True)
class Outcome:
    """What a search found: ``trials`` of all rungs, ``best`` of them, ``members`` alone, and the table."""

    trials: tuple[Trial, ...]
    best: Trial
    members: tuple[Trial, ...]
    rows: tuple[Row, ...]


def whole_search(setup: Setup) -> Script[Outcome]:
    """Members, baselines, search, and the table on half B.

    Raises:
        BoomError: every trial failed, or every member.
    """
    count = len(setup.ratios)
    alone = [even_point("linear", _one_hot(i, count)) for i in range(count)]
    members = yield [Asked(i, None, {}, point, f"member-{i}", "member") for i, point in enumerate(alone)]
    named = closed_forms(setup, members)
    judged = yield [Asked(i, None, {}, b.point, b.name, "baseline") for i, b in enumerate(named)]
    if count > 1:
        soup, found = yield from greedy_soup(members, judged[[b.name for b in named].index("best member")])
        named.append(soup)
        judged.append(found)
    plan = setup.plan
    trials = yield from searching(plan) if isinstance(plan, SearchPlan) else descending(plan)
    best = best_trial(trials)
    named.append(Baseline(SEARCHED, best.point, f"best of {len({t.number for t in trials})} trials on half A"))
    judged.append(best)
    halves = yield [Asked(i, None, {}, b.point, b.name, "half_b") for i, b in enumerate(named)]
    rows = (Row(b, a, half) for b, a, half in zip(named, judged, halves, strict=True))
    return Outcome(tuple(trials), best, tuple(members), tuple(rows))


def closed_forms(setup: Setup, members: Sequence[Trial]) -> list[Baseline]:
    """All baselines that need no judgement but the members' own: base first, then ratio and uniform.

    Raises:
        BoomError: no member could be judged.
    """
    values = [math.inf if m.value is None else m.value for m in members]
    best = min(range(len(values)), key=lambda i: (values[i], i))
    if not math.isfinite(values[best]):
        raise BoomError(f"no member could be judged: {members[0].error}")
    named = [
        Baseline(BASE, None, "the model that all members start from"),
        Baseline("ratio", even_point(setup.method, setup.ratios), "weight = share of the corpus (BOOM)"),
        Baseline("uniform", even_point(setup.method, [1.0] * len(values)), "the same weight for all"),
        Baseline("best member", even_point("linear", _one_hot(best, len(values))), f"member {best}, by its own rows"),
    ]
    if len(values) > 1:
        how = f"weight = softmax(-objective / {COCKTAIL_TEMPERATURE:g}) of each member alone (LM-Cocktail)"
        named.append(Baseline("cocktail", even_point("linear", cocktail(values)), how))
        stock = even_point("model_stock", [1.0] * len(values))
        named.append(Baseline("model stock", stock, "towards the mean by the members' angles, per tensor"))
    return named


def cocktail(values: Sequence[float], temperature: float = COCKTAIL_TEMPERATURE) -> list[float]:
    """softmax(-value / temperature), (M,): LM-Cocktail's weights. A member that could not be judged (inf) has none."""
    least = min(values)
    return [math.exp(-(value - least) / temperature) for value in values]


def greedy_soup(members: Sequence[Trial], single: Trial) -> Script[tuple[Baseline, Trial]]:
    """Greedy soup (arXiv 2203.05482): members from the best down, each kept where the even mean gets no worse."""
    known = [m for m in members if m.value is not None]
    order = sorted(range(len(known)), key=lambda k: (known[k].value, k))
    places = [members.index(known[k]) for k in order]
    soup, best = places[:1], single
    for step, place in enumerate(places[1:]):
        share = [1.0 if i in (*soup, place) else 0.0 for i in range(len(members))]
        [tried] = yield [Asked(step, None, {}, even_point("linear", share), "greedy soup", "greedy")]
        if tried.value is not None and (best.value is None or tried.value <= best.value):
            soup, best = [*soup, place], tried
    how = f"even mean of members {', '.join(map(str, sorted(soup)))}, added while the objective got no worse"
    return Baseline("greedy soup", best.point, how), best


def descending(plan: DescentPlan) -> Script[list[Trial]]:
    """A gradient search: each trial goes on from the last one's parameters; a failed one ends it."""
    done: list[Trial] = []
    for number in range(plan.trials):
        if plan.budget is not None and spent_seconds(done) >= plan.budget:
            break
        parameters = done[-1].parameters if done else {}
        [trial] = yield [Asked(number, None, parameters, None, plan.searcher)]
        done.append(trial)
        if trial.value is None:
            break
    return done


def _one_hot(place: int, count: int) -> list[float]:
    return [1.0 if i == place else 0.0 for i in range(count)]
