"""Members that fail, wait and are left out: the policies as tables, what files say, what a plan of members shows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boom_ray import records
from boom_ray.config import BoomError, Recipe, parse_recipe
from boom_ray.costs import measured_speed
from boom_ray.failures import ASKED, NODE, Failure, Hung, Stopped, again
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import MERGES, Keys, World, derive_keys, steps
from boom_ray.report.gantt import gantt_lines
from boom_ray.report.tables import verdict
from boom_ray.resources import Placement, Speed
from boom_ray.runs import run_keys
from boom_ray.stores.disks import DiskFull
from boom_ray.train.placing import Assumed, ensemble_plan, forecast_jobs, planned_nodes

WORLD = World(("x",), None, ())


def _recipe(**sections: Any) -> Recipe:
    base = {"name": "r", "base": {"build": {}}, "corpus": {"datasets": [{"path": "x"}]}}
    return parse_recipe({**base, "bags": {"ratios": [0.2, 0.6, 1.0]}, **sections})


def _machine(step: int) -> Failure:
    return Failure("machine", f"worker 0 was lost, {step}", step)


def _fault(step: int) -> Failure:
    return Failure("fault", "OSError: no such file", step)


def _taken(step: int) -> Failure:
    return Failure("preempted", "its node is taken back", step)


MISTAKE = Failure("mistake", "loss nan", 50)


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([MISTAKE], False),
        ([_machine(10), MISTAKE], False),
        ([_fault(0)], False),  # it has never worked
        ([_fault(7)], True),
        ([_fault(7), _fault(7)], False),  # the same at the same step
        ([_fault(7), _fault(6)], False),  # and what falls behind gains nothing either
        ([_fault(7), _fault(8), _fault(9)], True),  # every start has done more than the last
        ([_machine(0)], True),
        ([_machine(0)] * 2, True),
        ([_machine(0)] * 3, False),
        ([_machine(s) for s in (5, 5, 5)], True),
        ([_machine(s) for s in (5, 5, 5, 5)], False),
        ([_machine(s) for s in (5, 5, 5, 6)], True),  # progress forgives
        ([_machine(s) for s in range(1, 100)], True),  # a storm of preemptions, each a step further on
        ([_machine(5), _fault(5)], False),
        ([_taken(s) for s in (5, 5, 5, 5, 5)], True),  # five nodes in a row are nobody's failure
        ([_taken(0)] * 19, True),
        ([_taken(0)] * 20, False),  # but a member that is never let get further ends
        ([_taken(9), _taken(9), _fault(9)], True),  # they use up no patience with what really fails
        ([_fault(9), _taken(9), _fault(9)], False),
        ([*[_machine(3)] * 3, *[_taken(3)] * 9], True),
    ],
)
def test_what_is_started_again(failures, expected):
    assert again(failures) is expected


def test_a_member_that_repeats_itself_ends():
    """Whatever a failing member does, starts are bounded by its steps and the patience of one kind."""
    for step in (0, 1, 40):
        for make in (_machine, _fault):
            failures = [make(step)]
            while again(failures):
                failures.append(make(step))
                assert len(failures) <= 4


def test_failures_say_where():
    assert str(Failure("fault", "OSError: gone", 57, "nq")) == "step 57, dataset nq: OSError: gone"
    assert str(Failure("machine", "worker 1 was lost", 0)) == "step 0: worker 1 was lost"
    assert str(Failure("mistake", "step 3, dataset nq: loss nan", 3, "nq")) == "step 3, dataset nq: loss nan"


def _queue(*widths: int) -> list[Placement]:
    return [Placement(f"m{i}", width, 0.0, 1.0) for i, width in enumerate(widths)]


@pytest.mark.parametrize(
    ("waiting", "running", "slots", "most", "expected"),
    [
        ((2, 1), (), 3, None, "m0"),
        ((2, 1), (2,), 3, None, None),  # the narrow one does not overtake, or a wide one would wait for ever
        ((1, 2), (2,), 3, None, "m0"),
        ((1,), (1, 1), 3, 2, None),
        ((1,), (1,), 3, 2, "m0"),
        ((4, 1), (2,), 3, None, "m1"),  # a node was lost: m0 waits for it, the others go on
        ((4,), (), 3, None, None),
        ((1,), (3,), 2, None, None),  # more runs than the cluster has left
        ((), (), 3, None, None),
    ],
)
def test_who_starts_next(waiting, running, slots, most, expected):
    from boom_ray.train.ensemble import next_to_start

    found = next_to_start(_queue(*waiting), _queue(*running), slots, most)
    assert (found and found.name) == expected


def test_a_fit_that_never_comes_back_holds_no_exit():
    """As one that asks a Ray which a stopped command has shut down."""
    stuck = "import threading; from boom_ray.train.ensemble import _in_thread as go; go('m', threading.Event().wait)"
    assert subprocess.run([sys.executable, "-c", stuck], timeout=60).returncode == 0


def test_what_a_thread_does_is_what_its_future_says():
    from boom_ray.train.ensemble import _in_thread

    assert _in_thread("member-0", lambda: 7).result(timeout=10) == 7
    with pytest.raises(BoomError, match="no member"):
        _in_thread("member-1", _fail).result(timeout=10)


def _fail() -> int:
    raise BoomError("no member")


def test_a_members_failure_is_told_in_the_words_of_its_worker():
    from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
    from ray.train import ControllerError, PreemptionError, PreemptionInfo, WorkerGroupError
    from ray.train.v2._internal.exceptions import (
        WorkerGroupStartupFailedError,
        WorkerHealthCheckFailedError,
        WorkerHealthCheckTimeoutError,
    )

    from boom_ray.train.causes import cause

    died = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
    peer = RuntimeError("Connection closed by peer [127.0.0.1]:4242\nmore")
    mistake = BoomError("member-1, step 3, dataset nq: loss nan")
    gone = WorkerHealthCheckFailedError("A worker health check failed.", RayActorError(preempted=True))
    full = WorkerHealthCheckFailedError(
        "A worker health check failed.",
        OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node: 31.2GB"),
    )
    hung = Hung("hung: rank 1 (process 7 on 10.0.0.3) does not answer for 300 s")
    back = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [0]})
    table = [
        (WorkerGroupError("text", {0: Stopped(ASKED[NODE]), 1: peer}), "preempted", "its node is taken back"),
        (WorkerGroupError("text", {0: peer, 1: gone}), "preempted", "worker 1 went with its node"),
        (PreemptionError(back, drain_timed_out=True), "preempted", "did not end in time"),
        (WorkerGroupError("text", {0: full}), "fault", "worker 0 ran out of memory"),
        (WorkerGroupError("text", {0: full}), "fault", "Lower train.chunk_tokens"),
        (ControllerError(hung), "machine", "hung: rank 1 (process 7"),
        (WorkerGroupError("text", {0: peer, 1: died}), "machine", "worker 1 was lost"),
        (WorkerGroupError("text", {0: peer, 1: mistake}), "mistake", "member-1, step 3, dataset nq: loss nan"),
        (WorkerGroupError("text", {0: peer}), "fault", "RuntimeError: Connection closed by peer [127.0.0.1]:4242"),
        (WorkerGroupError("text", {2: WorkerHealthCheckTimeoutError("hangs")}), "machine", "worker 2 was lost"),
        (ControllerError(WorkerGroupStartupFailedError("no worker")), "machine", "its controller was lost (no worker)"),
        (ControllerError(KeyError("shard")), "fault", "KeyError: 'shard'"),
        (ActorDiedError(), "machine", "its controller was lost"),
        (RayTaskError("fit", "traceback", mistake), "mistake", "member-1, step 3"),
        (mistake, "mistake", "member-1, step 3"),
        (WorkerGroupError("text", {0: peer, 1: DiskFull("/run: it is full")}), "storage", "/run: it is full"),
        (ValueError(), "fault", "ValueError: "),
    ]
    for error, kind, words in table:
        found = cause(error)
        assert found[0] == kind, error
        assert words in found[1], error


@pytest.fixture
def run(tmp_path: Path) -> tuple[Ledger, Keys]:
    return Ledger.open(tmp_path / "run", "r"), derive_keys(_recipe(), WORLD)


def _land(ledger: Ledger, key: Key, meta: dict[str, Any] | None = None, inputs: dict[str, str] | None = None) -> None:
    with ledger.stage(key, inputs) as stage:
        stage.meta.update(meta or {})


def test_widths_and_failures_are_remembered_until_a_member_is_there(run):
    ledger, keys = run
    first, second, _ = keys.members
    assert records.frozen(ledger, first) is None
    records.freeze(ledger, first, records.Frozen(4, 2))
    records.freeze(ledger, second, records.Frozen(2, 2))
    for key in (first, second):
        records.record_failure(ledger, key, Failure("fault", "x", 3, "nq"))
    assert records.final_failure(ledger, first) == Failure("fault", "x", 3, "nq")
    _land(ledger, first)
    assert records.final_failure(ledger, first) is None  # it was made after all
    records.forget(ledger, keys.members)
    assert records.frozen(ledger, first) == records.Frozen(4, 2)  # what is finished keeps how it was made
    assert records.frozen(ledger, second) is None
    assert records.final_failure(ledger, second) is None


@pytest.mark.parametrize(("enough", "failed", "lost"), [
    (None, (1,), ()), (3, (1,), ()), (2, (), ()), (2, (1,), (1,)), (1, (0, 2), (0, 2)), (2, (0, 2), ()),
])  # fmt: skip
def test_a_run_goes_on_without_members_where_enough_are_left(run, enough, failed, lost):
    ledger, keys = run
    recipe = _recipe(resources={"min_members": enough})
    for index in failed:
        records.record_failure(ledger, keys.members[index], Failure("fault", "x", 3))
    assert run_keys(recipe, WORLD, ledger).lost == lost


def test_an_ensemble_without_a_member_is_the_ensemble_of_the_others():
    """What is merged, searched and scored is named by those that landed; nothing before them is touched."""
    keys, fewer = derive_keys(_recipe(), WORLD), derive_keys(_recipe(), WORLD, (2,))
    two = derive_keys(_recipe(bags={"ratios": [0.2, 0.6]}), WORLD)
    assert (fewer.members, fewer.base, fewer.bags) == (keys.members, keys.base, keys.bags)
    assert list(fewer.ensemble) == [0, 1]
    assert fewer.ratios == [0.2, 0.6]
    for part in ("grams", "search", "merges", "scores", "published"):
        assert getattr(fewer, part) == getattr(two, part) != getattr(keys, part)
    middle = derive_keys(_recipe(), WORLD, (1,))
    assert {n for n in middle.models if n.startswith("member")} == {"member-0", "member-2"}
    assert middle.merges["ratio"] not in (keys.merges["ratio"], fewer.merges["ratio"])
    listed = [step.name for step in steps(middle, lambda _: False, {})]
    assert not [name for name in listed if "member-1" in name]
    assert [name for name in listed if name.startswith("merge-")] == [f"merge-{m}" for m in MERGES]


def test_the_report_names_who_is_missing_and_why():
    lost = [{"name": "member-1", "bag": "60 %", "reason": "step 3, dataset nq: loss nan."}]
    lines = verdict({"models": [], "members": [{}, {}], "sets": [], "lost": lost})
    told = "member-1 (60 %) is missing: it failed for good (step 3, dataset nq: loss nan). The other 2 were merged."
    assert told in lines


def _trained(ledger: Ledger, keys: Keys, index: int, width: int, seconds: float, beside: float | None) -> None:
    """A member of 1,000 rows that took so long."""
    inputs = {"base": f"elsewhere/{keys.base.name}", "tokens": f"elsewhere/{keys.tokens.name}"}
    meta: dict[str, Any] = {"width": width, "threads": 1, "rows": 1000, "steps": 10}
    meta["measured"] = {"step_seconds": seconds / 10}
    _land(ledger, keys.members[index], meta, inputs)
    records.freeze(ledger, keys.members[index], records.Frozen(width, 1))
    if beside is not None:
        records.note_seconds(ledger, keys.members[index], seconds + beside)


def test_speed_is_what_members_of_this_base_have_shown(run):
    ledger, keys = run
    recipe = _recipe()
    assert measured_speed(ledger, keys, recipe) is None
    warm = {"width": 1, "threads": 4, "rows": 1000, "steps": 50, "measured": {"step_seconds": 2.0}}
    _land(ledger, keys.base, warm)
    assert measured_speed(ledger, keys, recipe) == Speed(pytest.approx(2.5))  # 10 rows/s on four cores
    _land(ledger, Key("members", "other", "0" * 16), {**warm, "rows": 9}, {"base": "b", "tokens": "t"})
    _land(ledger, Key("members", "average", "1" * 16), {}, {"member": keys.members[0].identity})
    _trained(ledger, keys, 0, 1, 100.0, None)
    assert measured_speed(ledger, keys, recipe) == Speed(pytest.approx(10.0))
    _trained(ledger, keys, 1, 4, 1000 / (10 * 4 * 0.8**2), 12.0)
    expected = Speed(pytest.approx(10.0), pytest.approx(0.8), pytest.approx(12.0, abs=1e-3))
    assert measured_speed(ledger, keys, recipe) == expected


def _show(recipe: Recipe, ledger: Ledger, cluster: str, assumed: Assumed = Assumed(), replan: bool = False) -> Any:
    keys = derive_keys(recipe, WORLD)
    jobs, speed = forecast_jobs(recipe, ledger, keys, assumed, replan)
    return ensemble_plan(recipe, jobs, planned_nodes(cluster, recipe), speed)


BAGS = {"member-0": "20 %", "member-1": "60 %", "member-2": "100 %"}


def test_a_plan_of_members_before_anything_is_known(run):
    """Shares alone: times are relative, and nobody pretends to know hours."""
    plan = _show(_recipe(), run[0], "8xH100")
    assert not plan.timed
    assert (plan.busy_hours, plan.held_hours) == (None, None)
    assert plan.limits.slots == 8
    assert plan.bundle.gpus == 1.0
    text = "\n".join(gantt_lines(plan, BAGS, 2.0))
    assert "100 %" in text
    assert "hours need a speed" in text
    assert "cost" not in text


def test_a_plan_of_members_in_hours_and_money(run):
    recipe = _recipe(resources={"price": 3.0, "max_width": 1}, train={"epochs": 2})
    plan = _show(recipe, run[0], "2x4", Assumed(rows=36_000, rows_per_second=10.0))
    ends = {p.name: p.end for p in plan.placements}
    assert ends == {f"member-{i}": pytest.approx(share * 7200) for i, share in enumerate((0.2, 0.6, 1.0))}
    assert (plan.bound, plan.makespan) == (pytest.approx(7200), pytest.approx(7200))
    assert plan.busy_hours == pytest.approx(2 * 1.8)
    assert plan.held_hours == pytest.approx(2 * 8)
    written = plan.to_json(3.0)
    assert written["cost"] == {"busy": pytest.approx(10.8), "held": pytest.approx(48.0)}
    assert json.loads(json.dumps(written)) == written
    lines = gantt_lines(plan, BAGS, 3.0)
    bars = {line.split()[0]: line.split("|")[1] for line in lines[1:4]}
    assert [bars[f"member-{i}"].count("#") for i in range(3)] == [12, 36, 60]
    assert "cost at 3 a device-hour: 10.80 at work, 48.00 for all to the end" in lines
    assert "the widest member has resources.max_width (1) workers: a higher one may end sooner" in lines


def test_rows_of_a_corpus_count_for_more_than_what_is_said(run):
    ledger, keys = run
    with ledger.stage(keys.corpus) as stage:
        (stage.path / "datasets.json").write_text(
            json.dumps([{"name": "nq", "rows": 600}, {"name": "sts", "rows": 400}])
        )
    plan = _show(_recipe(), ledger, "1", Assumed(rows=7, rows_per_second=1.0))
    assert plan.makespan == pytest.approx(0.2 * 1000 + 0.6 * 1000 + 1000)


def test_steps_bound_what_is_assumed(run):
    train = {"max_steps": 10, "batch_size": 32}
    by_steps = _show(_recipe(train=train), run[0], "1", Assumed(rows_per_second=1.0))
    assert sum(p.end - p.start for p in by_steps.placements) == pytest.approx(3 * 320)
    both = _show(_recipe(train=train), run[0], "1", Assumed(rows=1000, rows_per_second=1.0))
    assert sum(p.end - p.start for p in both.placements) == pytest.approx(200 + 320 + 320)


def test_a_started_member_keeps_its_width_unless_it_is_planned_anew(run):
    ledger, keys = run
    records.freeze(ledger, keys.members[2], records.Frozen(1, 1))
    widths = {p.name: p.width for p in _show(_recipe(), ledger, "8").placements}
    assert widths["member-2"] == 1
    again = {p.name: p.width for p in _show(_recipe(), ledger, "8", replan=True).placements}
    assert again["member-2"] > 1
    records.freeze(ledger, keys.members[2], records.Frozen(9, 1))
    with pytest.raises(BoomError, match="member-2 was started with 9 workers"):
        _show(_recipe(), ledger, "8")
    _land(ledger, keys.members[2])
    assert [p.name for p in _show(_recipe(), ledger, "8").placements] == ["member-0", "member-1"]


def test_cores_are_the_devices_where_workers_take_no_gpu(run):
    recipe = _recipe(resources={"gpus_per_worker": 0, "cpus_per_worker": 2})
    plan = _show(recipe, run[0], "3x5", Assumed(10_000, 1.0))
    assert plan.limits.slots == 6
    assert plan.held_hours == pytest.approx(6 * 2 * plan.makespan / 3600)
    assert replace(plan, placements=()).busy_share == 0.0
