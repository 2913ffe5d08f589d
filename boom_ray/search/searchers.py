"""TPE, random draws and the grid, asked and told in fixed rounds: a search as a pure function of its seed and values.

What is proposed for a number depends on the seed, the number and the values of the rounds before it, on nothing else:
not on which trial ends first, how many run at once, or whether the search was killed in between. So a search is
rebuilt by telling it again what ``trials.jsonl`` holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from boom_ray.config import BoomError
from boom_ray.data.bagging import derive_seed
from boom_ray.search.points import Point
from boom_ray.search.space import Dimension, Space
from boom_ray.search.trial_log import Trial, spent_seconds

if TYPE_CHECKING:
    import optuna

_STARTUP = 8  # random trials before TPE: it models what it has seen, so it must have seen something

Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked:
    """One judgement that a search asks for.

    Attributes:
        number: of the trial; rung: which subset of the rows, None for all.
        parameters: what was proposed, in the searcher's own terms; point: what is merged, None where the trial itself
            finds it (a step of descent, which starts from ``parameters``).
        searcher: who asks; what: ``trial``, or what else is judged on the way (``member``, ``baseline``, ``half_b``).
    """

    number: int
    rung: int | None
    parameters: Mapping[str, Any]
    point: Point | None
    searcher: str
    what: str = "trial"

    @property
    def place(self) -> tuple[str, int, int]:
        """Names the judgement within its search."""
        return self.what, self.number, -1 if self.rung is None else self.rung


Script = Generator[list[Asked], list[Trial], Result]  # yields judgements to make together, is sent them in that order


@dataclass(frozen=True)
class SearchPlan:
    """Everything that decides a search's proposals, given the values.

    Attributes:
        searcher: tpe, random or grid; trials: points in all; round: points asked together.
        first: points that are tried before the searcher's own (closed-form baselines): numbers 0, 1 ..
        rungs, eta: successive halving; one rung: every point is judged on all rows.
        budget: device-seconds of trials after which no round begins.
    """

    space: Space
    searcher: str = "tpe"
    trials: int = 24
    round: int = 4
    seed: int = 0
    first: tuple[Point, ...] = ()
    rungs: int = 1
    eta: int = 3
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.trials < 1 or self.round < 1:
            raise BoomError(f"a search needs at least one trial and rounds of one; got {self.trials} and {self.round}.")
        if self.budget is not None and not self.budget > 0:
            raise BoomError(f"a budget of {self.budget} device-seconds leaves nothing to search with. Raise it.")
        if self.searcher not in _PROPOSERS:
            raise BoomError(f"unknown searcher '{self.searcher}': known are {', '.join(_PROPOSERS)}.")

    @property
    def bracket(self) -> int:
        """Points that are asked together and halved together."""
        return max(self.round, self.eta ** (self.rungs - 1))


def searching(plan: SearchPlan) -> Script[list[Trial]]:
    """A search: yields what is to be judged, is sent the judgements, returns all of them."""
    history: list[Trial] = []
    done: list[Trial] = []
    propose = _PROPOSERS[plan.searcher](plan)
    total = min(plan.trials, propose.count)
    while len(history) < total:
        if plan.budget is not None and spent_seconds(done) >= plan.budget:
            break
        numbers = range(len(history), min(len(history) + plan.bracket, total))
        asked = [_asked(plan, number, found) for number, found in zip(numbers, propose(numbers, history), strict=True)]
        trials = yield asked
        done += trials
        history += trials
        for rung in range(1, plan.rungs):
            asked = [replace(asked[i], rung=rung) for i in survivors(plan, trials)]
            if not asked:
                break
            trials = yield asked
            done += trials
    return done


def survivors(plan: SearchPlan, trials: Sequence[Trial]) -> list[int]:
    """Which of a rung's trials see more rows: the best 1 / eta by (value, number), and the first points always."""
    finite = [i for i, trial in enumerate(trials) if trial.value is not None and math.isfinite(trial.value)]
    ranked = sorted(finite, key=lambda i: (trials[i].value, trials[i].number))
    keep = set(ranked[: max(1, len(trials) // plan.eta)])
    keep |= {i for i in finite if trials[i].number < len(plan.first)}
    return sorted(keep)


def _asked(plan: SearchPlan, number: int, parameters: Mapping[str, Any]) -> Asked:
    point = plan.first[number] if number < len(plan.first) else plan.space.point(parameters)
    return Asked(number, 0 if plan.rungs > 1 else None, parameters, point, plan.searcher)


class _Random:
    """Every dimension by itself, evenly."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan
        self.count = _count(plan)

    def __call__(self, numbers: Sequence[int], history: Sequence[Trial]) -> list[dict[str, Any]]:
        return [_first(self._plan, number) or self._draw(number) for number in numbers]

    def _draw(self, number: int) -> dict[str, Any]:
        rng = np.random.default_rng(derive_seed(self._plan.seed, "draw", number))
        return {d.name: _drawn(d, rng) for d in self._plan.space.dimensions()}


def _drawn(dimension: Dimension, rng: np.random.Generator) -> Any:
    if dimension.choices:
        return dimension.choices[int(rng.integers(len(dimension.choices)))]
    return float(rng.uniform(dimension.low, dimension.high))


class _Grid:
    """The points of the finest grid that fits, in order."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan
        self._points = plan.space.grid(max(0, plan.trials - len(plan.first)))
        self.count = len(plan.first) + len(self._points)

    def __call__(self, numbers: Sequence[int], history: Sequence[Trial]) -> list[dict[str, Any]]:
        every = [*self._plan.first, *self._points]
        return [self._plan.space.parameters(every[number]) for number in numbers]


class _Tpe:
    """Optuna's TPE over the lowest rung's values, which all points have; mates of a round count as running."""

    def __init__(self, plan: SearchPlan) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._plan = plan
        self.count = _count(plan)
        self._study = optuna.create_study(direction="minimize")
        self._distributions = {d.name: _distribution(d) for d in plan.space.dimensions()}
        self._told = 0

    def __call__(self, numbers: Sequence[int], history: Sequence[Trial]) -> list[dict[str, Any]]:
        import optuna

        for trial in history[self._told :]:
            if trial.value is not None and math.isfinite(trial.value):
                params, value = dict(trial.parameters), trial.value
                made = optuna.trial.create_trial(params=params, distributions=self._distributions, value=value)
                self._study.add_trial(made)
        self._told = len(history)
        asked = []
        for number in numbers:
            self._study.sampler = self._sampler(number)
            if (fixed := _first(self._plan, number)) is not None:
                self._study.enqueue_trial(fixed)
            asked.append(self._study.ask(self._distributions))
        found = [dict(trial.params) for trial in asked]
        for trial in asked:  # they come back with their values as history; what is failed is not modelled
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return found

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        import optuna

        seed = derive_seed(self._plan.seed, "tpe", number) % 2**32
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(_STARTUP, len(self._plan.first)))


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    import optuna

    if dimension.choices:
        return optuna.distributions.CategoricalDistribution(dimension.choices)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high)


_PROPOSERS: dict[str, Callable[[SearchPlan], Any]] = {"tpe": _Tpe, "random": _Random, "grid": _Grid}


def _count(plan: SearchPlan) -> int:
    """Points in all; where nothing can be chosen, one is enough."""
    return plan.trials if plan.space.dimensions() else max(1, len(plan.first))


def _first(plan: SearchPlan, number: int) -> dict[str, Any] | None:
    return plan.space.parameters(plan.first[number]) if number < len(plan.first) else None


def drive(script: Script[Result], judge: Callable[[list[Asked]], list[Trial]]) -> Result:
    """Run a script to its end; ``judge`` gives a trial for each that is asked, in that order."""
    try:
        asked = next(script)
        while True:
            asked = script.send(judge(asked))
    except StopIteration as ended:
        result: Result = ended.value
        return result


def minimise(plan: SearchPlan, judge: Callable[[Asked], float | None]) -> list[Trial]:
    """A whole search with a plain function as its objective, lower is better; None or NaN: the trial failed."""

    def judged(asked: Sequence[Asked]) -> list[Trial]:
        return [_found(a, judge(a)) for a in asked]

    return drive(searching(plan), judged)


def _found(asked: Asked, value: float | None) -> Trial:
    known = value if value is not None and math.isfinite(value) else None
    return Trial(asked.number, asked.searcher, asked.point, asked.parameters, known, rung=asked.rung)
