"""``boom-ray search ratios``: what a recipe needs before it, the search, and what it leaves in the ledger."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_ray.cluster.lease import held
from boom_ray.config import Recipe
from boom_ray.data.bagging import derive_seed
from boom_ray.ledger import Key, Ledger, identity
from boom_ray.plan import Keys, derive_keys
from boom_ray.recipe import load_recipe
from boom_ray.runs import look, resolve_run_dir
from boom_ray.search.ratio_space import RatioSpace, ratio_space, set_name
from boom_ray.stages.preparation import Echo, Run, prepare

if TYPE_CHECKING:
    from boom_ray.search.objective import Judged
    from boom_ray.search.ratios import SetSearch
    from boom_ray.search.trial_log import Trial

KIND = "ratio_searches"
RESULT = "search.json"
_OPEN = ("trials", "round", "budget_seconds")  # settings that change no trial: other ones go on with the same log


def search_ratios(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    plan_only: bool = False,
    echo: Echo = print,
) -> tuple[dict[str, Any], Path] | None:
    """Search sets of sampling ratios as ``ratio_search`` in the recipe says; a second call finds it done.

    Args:
        recipe: a recipe or the path of one.
        overrides: ``dotted.key=value``, applied to a recipe file.
        run_dir: as of a run of the recipe, which may be there already: corpus, tokens and base are shared.
        plan_only: say what would be trained and what it costs, train nothing.
        echo: receives one line of progress at a time.

    Returns:
        What was found and where it lies; None where it was only planned.

    Raises:
        BoomError: a mistake in the recipe or the data; a budget that covers no trial. What was finished is kept.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, tuple(overrides))
    space = ratio_space(recipe.ratio_search, recipe.bags, derive_seed(recipe.seed, "ratios"))
    ledger = Ledger.open(resolve_run_dir(recipe, run_dir), recipe.name)
    world, pooled = look(recipe), pool_recipe(recipe, space)
    run = Run(pooled, ledger, world, derive_keys(pooled, world), echo)
    key = search_key(recipe, run.keys)
    if not ledger.has(key):
        from boom_ray.cluster.session import ray_session

        with held(ledger, echo), ray_session():
            ledger.sweep()
            prepare(run)
            if not _carry_out(run, key, space, plan_only):
                return None
    else:
        echo(f"{recipe.name}: this search is done.")
    return ledger.read_json(key, RESULT), ledger.path(key)


def pool_recipe(recipe: Recipe, space: RatioSpace) -> Recipe:
    """The recipe whose bags are all members that sets may hold."""
    slots = {"ratios": tuple(s.ratio for s in space.slots), "numbers": tuple(s.number for s in space.slots)}
    return recipe.model_copy(update={"bags": recipe.bags.model_copy(update=slots)})


def search_key(recipe: Recipe, pool: Keys) -> Key:
    """The artifact of a search: what it tries, with which members, judged how."""
    return Key(KIND, recipe.name, identity([_log_identity(recipe, pool), _settings(recipe, _OPEN)]))


def _log_identity(recipe: Recipe, pool: Keys) -> str:
    """Of all that the value of a trial follows from."""
    dump = recipe.model_dump(mode="json")
    tried = {name: value for name, value in dump["ratio_search"].items() if name not in _OPEN}
    judged = [dump["search"][name] for name in ("objective", "aggregate", "max_rows", "datasets", "precision")]
    merged = [dump["merge"][name] for name in ("method", "task_vectors")]
    merged += [scale] if (scale := recipe.merge.scale) != 1.0 else []
    members = [member.identity for member in pool.members]
    return identity(["ratios", 1, tried, judged, merged, members, sorted(recipe.bags.ratios), recipe.seed])


def _settings(recipe: Recipe, names: Sequence[str]) -> list[Any]:
    return [getattr(recipe.ratio_search, name) for name in names]


def _carry_out(run: Run, key: Key, space: RatioSpace, plan_only: bool) -> bool:
    from boom_ray.search.ratio_members import RatioTask, plan_lines
    from boom_ray.search.ratios import FILE, SetSearch, devices_of, workers_bundle

    folder = run.ledger.scratch("ratio_search", _log_identity(run.recipe, run.keys))
    task = RatioTask(run.recipe, run.ledger, run.keys, space, folder)
    search = SetSearch(task, run.echo)
    for line in plan_lines(search.pool, search.costs, devices_of(workers_bundle(task))):
        run.echo(line)
    if plan_only:
        return False
    try:
        trials = search.run()
        found = outcome(search, trials)
    finally:
        search.close()
    with run.ledger.stage(key, inputs={"members": [m.identity for m in run.keys.members]}) as stage:
        search.log.write_sorted(stage.path / FILE)
        (stage.path / RESULT).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
        stage.meta.update(best=found["best"], spent=found["spent"])
    return True


def outcome(search: SetSearch, trials: Sequence[Trial]) -> dict[str, Any]:
    """What was found, with a table of half B of all that was trained to the end."""
    from boom_ray.search.trial_log import best_trial

    task, best = search.task, best_trial(trials)
    top = task.recipe.ratio_search.rungs - 1
    chosen = task.space.sets[best.number]
    return {
        "kind": "ratios",
        "searcher": best.searcher,
        "settings": task.recipe.ratio_search.model_dump(mode="json"),
        "objective": f"{task.recipe.search.objective} on dev half A, lower is better",
        "shares": search.pool.shares,
        "best": {
            "number": best.number,
            "name": set_name(task.space, chosen),
            "ratios": best.parameters["ratios"],
            "numbers": best.parameters["numbers"],
            "value": best.value,
            "rung": best.rung,
            "complete": best.rung == top,
        },
        "stopped": search.stopped,
        "spent": search.spent,
        "trainings": [asdict(training) for training in search.costs.trainings],
        "table": _table(search, trials, best) if best.rung == top else [],
    }


@dataclass(frozen=True)
class _Row:
    name: str
    slots: tuple[int, ...]
    a: Judged
    b: Judged


def _table(search: SetSearch, trials: Sequence[Trial], best: Trial) -> list[dict[str, Any]]:
    """Sets and single members that are trained to the end: half A, half B, and on B the interval to the best set."""
    from boom_ray.evaluate.means import even
    from boom_ray.evaluate.significance import Contrast, Paired

    space, top = search.task.space, search.task.recipe.ratio_search.rungs - 1
    ended = [t.number for t in trials if t.rung == top and t.value is not None and math.isfinite(t.value)]
    sets = [space.sets[best.number], *(space.sets[n] for n in ended if n != best.number)]
    sets += [(slot,) for slot in space.used if search.pool.has(slot, top)]
    rows = [
        _Row(set_name(space, slots), slots, search.judge_half(slots, "a"), search.judge_half(slots, "b"))
        for slots in dict.fromkeys(sets)
    ]
    paired = Paired({row.name: row.b.samples for row in rows})
    weights = even(list(rows[0].b.samples))
    found = []
    for row in rows:
        interval = paired.interval(Contrast((row.name,), (rows[0].name,)), weights) if row is not rows[0] else None
        found.append(
            {
                "name": row.name,
                "ratios": [space.slots[i].ratio for i in row.slots],
                "numbers": [space.slots[i].number for i in row.slots],
                "a": _finite(row.a.value),
                "b": _finite(row.b.value),
                "metric_b": _finite(row.b.score),
                "to_best": [interval.difference, interval.low, interval.high] if interval else None,
            }
        )
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
