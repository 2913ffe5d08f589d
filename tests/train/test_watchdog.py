"""Who counts as hung, and what is done to a process that does not answer any more."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from boom_ray.train.pulse import Pulse
from boom_ray.train.watchdog import Found, Rank, end_from_outside, own_stacks, verdict


def _rank(answered: float, moved: float, count: int) -> Rank:
    return Rank(answered, moved, Pulse(count, f"step {count}"))


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([_rank(99, 95, 7), _rank(99, 96, 7)], None),
        ([_rank(99, 20, 7), _rank(99, 95, 8)], None),  # one is slow, but something moves
        ([_rank(99, 20, 7), _rank(30, 20, 7)], Found((1,), 70, "does not answer")),  # stopped, whatever the others do
        ([_rank(99, 40, 8), _rank(99, 39, 7)], Found((1,), 60, "has done nothing")),  # rank 0 waits for rank 1
        ([_rank(99, 40, 8), _rank(99, 40, 8)], Found((0, 1), 60, "has done nothing")),
        ([_rank(20, 20, 1)], Found((0,), 80, "does not answer")),
    ],
)
def test_who_is_hung(ranks, expected):
    assert verdict(ranks, now=100.0, patience=50.0) == expected


def test_an_interpreter_may_be_held_for_five_minutes_and_a_step_may_take_longer():
    assert verdict([_rank(100, 0, 1)], now=200.0, patience=1800.0) is None
    assert verdict([_rank(1700, 0, 1)], now=1799.0, patience=1800.0) is None
    assert verdict([_rank(100, 100, 1)], now=401.0, patience=1800.0) == Found((0,), 301, "does not answer")


def test_pulses_move_a_rank_and_answers_alone_do_not():
    rank = Rank(0.0, 0.0)
    rank.hear(Pulse(1, "step 0"), 5.0)
    rank.hear(Pulse(1, "step 0"), 9.0)
    assert (rank.answered, rank.moved, rank.pulse.count) == (9.0, 5.0, 1)


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
