"""The search of sampling ratios: sets of members, each trained once, merged in memory and judged on dev half A.

A round of trials is asked, what its members lack is trained, and each is judged. Rounds depend on the values alone, so
a search that is killed and resumed asks the same questions, and answers from its log what it has answered before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from boom_ray import records
from boom_ray.cluster.autoscale import grown_nodes
from boom_ray.config import BoomError
from boom_ray.costs import measured_speed
from boom_ray.failures import Failure
from boom_ray.progress import watch
from boom_ray.resources import Bundle, bundle
from boom_ray.search.objective import Judged
from boom_ray.search.objective_rows import Half, why_none_out_of_bag
from boom_ray.search.ratio_judge import Judges
from boom_ray.search.ratio_members import Costs, Pool, RatioTask, Training
from boom_ray.search.ratio_space import Job, next_jobs, set_name
from boom_ray.search.settings import code_version, source_of
from boom_ray.search.trial_log import Trial, TrialLog, spent_seconds
from boom_ray.train.ensemble import Room, Watcher, train_ensemble
from boom_ray.train.placing import ensemble_plan, member_jobs

FILE = "ratio_trials.jsonl"
SEARCHER = "asha"
Echo = Callable[[str], None]


def workers_bundle(task: RatioTask) -> Bundle:
    """What one worker of a member takes on this cluster."""
    settings = task.recipe.resources
    nodes = grown_nodes(settings, [1])
    totals = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return bundle(totals, settings.cpus_per_worker, settings.gpus_per_worker)


def devices_of(needed: Bundle) -> float:
    """Devices of a worker: GPUs, else CPU cores."""
    return needed.gpus or float(needed.cpus)


class SetSearch:
    """One search: call :meth:`run`. ``stopped`` says why it ended before its end, None where it did not."""

    def __init__(self, task: RatioTask, echo: Echo) -> None:
        self.task, self.pool, self.costs = task, Pool(task), Costs(task)
        self.log = TrialLog(task.folder / FILE)
        self.stopped: str | None = None
        self._echo = echo
        self._bundle = workers_bundle(task)
        self._done = {(t.number, t.rung or 0): t for t in self.log.replay()}
        self._failed: dict[int, Failure] = {}
        self._judges = Judges(task, self._bundle)

    def run(self) -> list[Trial]:
        """Ask and answer until nothing is left to ask, or the budget is used up; the trials in order.

        Raises:
            BoomError: the budget does not cover the first round.
        """
        settings, space = self.task.recipe.ratio_search, self.task.space
        if why := why_none_out_of_bag(source_of(self.task.recipe, self.task.ledger, self.task.keys)):
            self._echo(f"  {why}")
        results: dict[Job, float | None] = {}
        while not self.stopped and (
            jobs := next_jobs(len(space.sets), settings.rungs, settings.eta, results, settings.round)
        ):
            while not self.stopped and (left := [job for job in jobs if job not in self._done]):
                self._carry_out(self._within_budget(left))
            results |= {job: self._done[job].value for job in jobs if job in self._done}
        return [self._done[job] for job in sorted(results)]

    @property
    def spent(self) -> float:
        """Device-seconds so far: training and judging, also before a kill."""
        return self.costs.spent + spent_seconds(list(self._done.values()))

    def _within_budget(self, jobs: Sequence[Job]) -> list[Job]:
        """The first jobs that are expected to fit into what is left of the budget."""
        budget = self.task.recipe.ratio_search.budget_seconds
        if budget is None:
            return list(jobs)
        cost: float | None = 0.0
        for count in range(len(jobs), 0, -1):
            rows = {i: self.pool.rows(i, rung) for i, rung in self._missing(jobs[:count]).items()}
            cost = self.costs.forecast(rows, devices_of(self._bundle))
            if cost is None:
                return list(jobs[:1])  # which shows what a row costs
            if self.spent + cost < budget:
                return list(jobs[:count])
        self.stopped = f"the next trial needs about {cost:,.0f} device-seconds more than the {self.spent:,.0f} spent"
        if not self._done:
            raise BoomError(
                f"a budget of {budget:,.0f} device-seconds does not cover the first trial: its members take about "
                f"{cost:,.0f}. Raise ratio_search.budget_seconds, lower train.max_steps, or add rungs."
            )
        return []

    def _carry_out(self, jobs: Sequence[Job]) -> None:
        while missing := self._missing(jobs):
            self._train(missing)
        for number, rung in jobs:
            trial = self._judge(number, rung)
            self.log.append(trial)
            self._done[number, rung] = trial
            told = f"{trial.value:.4f}" if trial.value is not None and math.isfinite(trial.value) else trial.error
            name, share = set_name(self.task.space, self.task.space.sets[number]), 100 * self.pool.shares[rung]
            self._echo(f"  trial {number}, {name}, {share:.3g} % of the steps: {told}")
        self._judges.rest()

    def _missing(self, jobs: Iterable[Job]) -> dict[int, int]:
        """Slot -> rung of what is to be trained, without members that failed for good."""
        places = {(slot, rung) for number, rung in jobs for slot in self.task.space.sets[number]}
        return {slot: rung for slot, rung in self.pool.missing(places).items() if slot not in self._failed}

    def _train(self, missing: Mapping[int, int]) -> None:
        task, pool = self.task, self.pool
        rows = {i: pool.rows(i, rung) for i, rung in missing.items()}
        jobs = member_jobs(task.ledger, task.keys, rows)
        nodes = grown_nodes(task.recipe.resources, [job.width or 1 for job in jobs])
        plan = ensemble_plan(task.recipe, jobs, nodes, measured_speed(task.ledger, task.keys, task.recipe))
        work = {
            f"member-{i}": (replace(pool.work[i][0], stop=pool.step(i, rung)), pool.work[i][1])
            for i, rung in missing.items()
        }
        begun = {f"member-{i}": (i, rung, pool.trained(i, rung), rows[i]) for i, rung in missing.items()}
        parts = [f"{task.space.slots[i].label} from step {a} to {pool.step(i, r)}" for i, r, a, _ in begun.values()]
        self._echo(
            f"[{time.strftime('%H:%M:%S')}] training {', '.join(parts)}; {self.spent:,.0f} device-seconds so far"
        )

        def held(name: str, seconds: float) -> None:
            slot, rung, before, count = begun[name]
            self._note(slot, rung, (before, count), seconds)

        watched = [(part[0], task.space.slots[begun[name][0]].label) for name, part in work.items()]
        with watch(watched) as shown:
            watcher = Watcher(shown.tick, held=held, say=self._echo)
            hang = task.recipe.resources.hang_seconds
            room = Room(plan.bundle, plan.limits.max_concurrent, plan.limits.slots, hang)
            failed = train_ensemble(task.ledger, work, plan.placements, room, watcher)
        self._failed |= {begun[name][0]: failure for name, failure in failed.items()}

    def _note(self, slot: int, rung: int, begun: tuple[int, int], seconds: float) -> None:
        place, key = self.task.space.slots[slot], self.task.keys.members[slot]
        chosen = records.frozen(self.task.ledger, key)
        devices = devices_of(self._bundle) * (chosen.width if chosen else 1)
        landed = self.pool.has(slot, rung)
        before, rows = begun
        ended = self.pool.step(slot, rung) if landed else before
        cost = (rows if landed else 0, seconds * devices, landed)
        self.costs.add(Training(key.name, place.ratio, place.number, before, ended, *cost))

    def _judge(self, number: int, rung: int) -> Trial:
        chosen, space = self.task.space.sets[number], self.task.space
        parameters = {
            "ratios": space.ratios(number),
            "numbers": [space.slots[i].number for i in chosen],
            "steps": [self.pool.step(i, rung) for i in chosen],
            "weights": self.task.recipe.ratio_search.weights,
        }
        trial = Trial(number, SEARCHER, None, parameters, None, rung=rung, code=code_version())
        lost = [i for i in chosen if not self.pool.has(i, rung)]
        if lost:
            return replace(trial, error=f"member {space.slots[lost[0]].label}, {self._failed[lost[0]]}")
        found, seconds = self._judges.judge([(i, rung) for i in chosen], self.pool)
        trial = replace(trial, value=found.value, score=found.score, by_dataset=found.by_dataset)
        return replace(trial, rows=found.rows, seconds=seconds)

    def judge_half(self, slots: Sequence[int], half: Half) -> Judged:
        """A set of members that are trained to the end, on half A or B."""
        found, _ = self._judges.judge([(i, len(self.pool.shares) - 1) for i in slots], self.pool, half)
        return found

    def close(self) -> None:
        self._judges.close()
