"""Who counts as hung, and what is done to a process that does not answer any more."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from boom_ray.train.pulse import Pulse, beat, felt
from boom_ray.train.watchdog import Found, Rank, end_from_outside, own_stacks, verdict


def _rank(answered: float, still: float, count: int) -> Rank:
    return Rank(answered, Pulse(count, f"step {count}", still))


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([_rank(99, 4, 7), _rank(99, 3, 7)], None),
        ([_rank(99, 79, 7), _rank(99, 4, 8)], None),  # one is slow, but something moves
        ([_rank(99, 79, 7), _rank(30, 10, 7)], Found((1,), 70, "does not answer")),  # stopped, whatever the others do
        ([_rank(99, 60, 8), _rank(99, 61, 7)], Found((1,), 60, "has done nothing")),  # rank 0 waits for rank 1
        ([_rank(99, 60, 8), _rank(99, 60, 8)], Found((0, 1), 60, "has done nothing")),
        ([_rank(60, 45, 8)], None),  # heard late: what it has done since is not known
        ([_rank(20, 0, 1)], Found((0,), 80, "does not answer")),
    ],
)
def test_who_is_hung(ranks, expected):
    assert verdict(ranks, now=100.0, patience=50.0) == expected


def test_an_interpreter_may_be_held_for_five_minutes_and_a_step_may_take_longer():
    assert verdict([_rank(100, 0, 1)], now=200.0, patience=1800.0) is None
    assert verdict([_rank(1700, 1700, 1)], now=1799.0, patience=1800.0) is None
    assert verdict([_rank(100, 0, 1)], now=401.0, patience=1800.0) == Found((0,), 301, "does not answer")


def test_a_pulse_says_for_how_long_nothing_has_been_done():
    beat("step 1")
    time.sleep(0.1)
    first = felt()
    assert first.still >= 0.1
    beat("step 2")
    assert felt().still < first.still
    assert (felt().count, felt().what) == (first.count + 1, "step 2")


def test_a_stopped_process_tells_its_stack_from_outside_and_is_killed():
    script = "import time\ndef in_a_collective():\n    time.sleep(60)\nin_a_collective()"
    stopped = subprocess.Popen(["bash", "-c", 'exec -a "ray::RayTrainWorker" "$0" -c "$1"', sys.executable, script])
    try:
        time.sleep(1)
        stopped.send_signal(signal.SIGSTOP)
        while psutil.Process(stopped.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.05)
        told = end_from_outside(stopped.pid)
        assert "(stopped)" in told
        assert "in_a_collective" in told or "no stacks: " in told  # where py-spy may not look
        assert stopped.wait(timeout=5) == -signal.SIGKILL
        assert "gone" in end_from_outside(stopped.pid)
    finally:
        stopped.kill()


def test_a_process_that_is_no_worker_is_left_alone():
    with subprocess.Popen(["sleep", "30"]) as other:
        assert "gone" in end_from_outside(other.pid)
        assert psutil.pid_exists(other.pid)
        assert other.poll() is None
        other.kill()


def test_own_stacks_name_the_caller():
    assert "test_own_stacks_name_the_caller" in own_stacks()
