"""The lease: of several drivers one writes; a dead one's lease is taken over, a lost one commits nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from boom_ray.cluster import interrupts
from boom_ray.cluster.lease import LEASE, RENEW, TERM, Clock, Holder, Lease, held, process_start, this_machine
from boom_ray.exit_codes import HELD, MEANING, Failed, Held, Infrastructure, code_of
from boom_ray.ledger import Key, Ledger
from boom_ray.stores.slots import FileSlot

KEY = Key("members", "member-0", "0123456789abcdef")
AWAY = {"host": "elsewhere", "machine": "another kernel"}


class Time:
    """A clock that passes only where somebody sleeps; ``meanwhile`` happens then."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now, self.meanwhile = now, lambda: None
        self.clock = Clock(lambda: self.now, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def slot(tmp_path: Path) -> FileSlot:
    return FileSlot(tmp_path / LEASE)


def lease(slot: FileSlot, time: Time) -> Lease:
    return Lease(slot, "run directory r", time.clock)


def holder(time: Time, **changes: object) -> Holder:
    return replace(Holder.here(time.now), **changes)


def test_a_driver_at_work_is_named_and_keeps_its_lease(slot, time):
    lease(slot, time).acquire()
    text = slot.read()
    with pytest.raises(Held, match=rf"run directory r is held by process {os.getpid()} on .*until 1970"):
        lease(slot, time).acquire()
    assert slot.read() == text
    assert time.now == 1000.0, "a driver that can be looked up is not waited for"


def test_given_back_it_can_be_taken(slot, time):
    first = lease(slot, time)
    first.acquire()
    first.release()
    assert slot.read() is None
    lease(slot, time).acquire()


@pytest.mark.parametrize("gone", [{"process": "another start"}, {"pid": 2**22 + 1}])
def test_a_dead_driver_of_this_machine_is_followed_at_once(slot, time, gone):
    """Also where its pid belongs to another process by now."""
    assert slot.create(holder(time, **gone).text)
    said: list[str] = []
    lease(slot, time).acquire(said.append)
    assert time.now == 1000.0
    assert "taking over" in said[0]
    assert Holder.parse(slot.read() or "").pid == os.getpid()


def test_a_silent_driver_elsewhere_is_waited_for_until_its_lease_expires(slot, time):
    assert slot.create(holder(time, **AWAY).text)
    lease(slot, time).acquire()
    assert TERM <= time.now - 1000.0 <= TERM + 2


def test_a_driver_elsewhere_that_renews_keeps_its_lease(slot, time):
    away = holder(time, **AWAY)
    assert slot.create(away.text)

    def renew() -> None:
        if time.now >= 1000.0 + RENEW:
            slot.replace(replace(away, expires=time.now + TERM).text)

    time.meanwhile = renew
    with pytest.raises(Held, match="elsewhere"):
        lease(slot, time).acquire()
    assert time.now <= 1000.0 + RENEW + 2, "its first renewal tells that it is alive"


def test_an_expired_lease_is_taken_at_once_even_of_a_process_that_lives(slot, time):
    """It was frozen: had it run, it would have renewed."""
    assert slot.create(holder(time).text)
    time.now += TERM
    lease(slot, time).acquire()
    assert time.now == 1000.0 + TERM


def test_what_no_driver_can_have_written_lasts_a_term(slot, time):
    for text in ("", "{", '{"pid": "x"}'):
        slot.replace(text)
        begun = time.now
        one = lease(slot, time)
        one.acquire()
        assert TERM <= time.now - begun <= TERM + 2
        one.release()


def test_a_clock_that_is_ahead_holds_for_a_term_at_most(slot, time):
    assert slot.create(holder(time, expires=time.now + 10**6, **AWAY).text)
    lease(slot, time).acquire()
    assert time.now - 1000.0 <= TERM + 2


def test_of_many_who_follow_an_expired_lease_one_holds_it(slot, time):
    assert slot.create(holder(time, **AWAY).text)
    time.now += TERM + 1
    start, won, lost = threading.Barrier(16), [], []

    def follow() -> None:
        one = lease(slot, time)
        start.wait()
        try:
            one.acquire()
            won.append(one)
        except Held:
            lost.append(one)

    threads = [threading.Thread(target=follow) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 15)
    won[0].check()


def test_renewals_carry_it_on(slot, time):
    one = lease(slot, time)
    one.acquire()
    for _ in range(20):
        time.now += RENEW
        one.renew()
        one.check()
    assert Holder.parse(slot.read() or "").expires == time.now + TERM
    assert Holder.parse(slot.read() or "").since == 1000.0


def test_a_frozen_driver_that_nobody_followed_goes_on(slot, time):
    one = lease(slot, time)
    one.acquire()
    time.now += 10 * TERM
    one.check()
    with pytest.raises(Held):
        lease(slot, time).acquire()


def test_a_lease_that_somebody_deleted_is_written_again(slot, time):
    one = lease(slot, time)
    one.acquire()
    assert slot.take(slot.read() or "")
    one.check()
    with pytest.raises(Held):
        lease(slot, time).acquire()


def test_who_was_followed_is_told_and_never_takes_it_back(slot, time):
    frozen = lease(slot, time)
    frozen.acquire()
    time.now += TERM + 1
    other = lease(slot, time)
    other.acquire()
    text = slot.read()
    for call in (frozen.check, frozen.renew, frozen.check):
        with pytest.raises(Held, match="taken over by process"):
            call()
    frozen.release()
    assert slot.read() == text
    other.check()


def make(ledger: Ledger, key: Key = KEY) -> None:
    with ledger.stage(key) as stage:
        (stage.path / "model.bin").write_text("weights")


def files(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_a_lost_lease_stops_every_commit_and_leaves_nothing(tmp_path):
    ledger = Ledger.open(tmp_path / "run", "r")
    other = holder(Time(4e9), **AWAY)

    def work() -> None:
        make(ledger)
        FileSlot(ledger.root / LEASE).replace(other.text)
        with pytest.raises(Held):
            make(ledger, replace(KEY, label="member-1"))
        with pytest.raises(Held):
            ledger.write_text("placement/x.json", "{}")
        raise KeyboardInterrupt  # as the renewing thread stops the command

    with pytest.raises(Held, match="elsewhere"), held(ledger, lambda line: None):
        work()
    assert files(ledger.root) == {
        "run.json",
        LEASE,
        *(f"members/{KEY.name}/{f}" for f in ("model.bin", "manifest.json")),
    }
    assert (ledger.root / LEASE).read_text() == other.text, "the other one's lease stays"


def test_a_block_that_ends_early_leaves_nothing_half_written(tmp_path):
    ledger = Ledger.open(tmp_path / "run", "r")
    half = ledger.root / "members" / ".tmp-of-a-worker"

    def work() -> None:
        half.mkdir(parents=True)
        assert (ledger.root / LEASE).is_file()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), held(ledger, lambda line: None):
        work()
    assert files(ledger.root) == {"run.json"}
    assert not half.exists()
    make(ledger)  # and the guard is gone


def test_a_worker_commits_under_its_drivers_lease(tmp_path):
    ledger = Ledger.open(tmp_path / "run", "r")
    with held(ledger, lambda line: None):
        make(Ledger(ledger.root))
    assert ledger.has(KEY)


_HOLD = """
import sys, time
from boom_ray.ledger import Ledger
from boom_ray.cluster.lease import held
with held(Ledger(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_and_a_kill(tmp_path, call: Callable[..., tuple[int, str]]):
    """The command ends with code 4 while the other driver lives, and goes on at once when it was killed."""
    root = Ledger.open(tmp_path / "run", "small").root
    other = subprocess.Popen([sys.executable, "-c", _HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        code, told = call("run", _recipe(tmp_path), "--run-dir", root)
        assert code == HELD
        assert f"process {other.pid}" in told
        assert told.count("\n") == 1
        other.send_signal(signal.SIGKILL)  # not waited for: a zombie counts as dead
        while process_start(other.pid) is not None:
            pass
        with held(Ledger(root), lambda line: None):
            assert json.loads((root / LEASE).read_text())["pid"] == os.getpid()
    finally:
        other.kill()
        other.wait()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    from boom_ray.cli import main

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["boom-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().err

    return run


def _recipe(folder: Path) -> Path:
    rows = [{"query": f"question {i}", "pos": [f"answer {i}"], "task_type": "retrieval"} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {
        "name": "small",
        "base": {"build": {"layers": 1}},
        "corpus": {"datasets": [{"path": f"{folder}/rows.jsonl"}]},
    }
    (folder / "small.yaml").write_text(json.dumps(raw))
    return folder / "small.yaml"


def test_a_process_is_known_by_its_start():
    assert this_machine()
    assert process_start(os.getpid()) == process_start(os.getpid()) != process_start(1)
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert process_start(ended.pid) is None


def test_exit_codes_of_errors():
    errors = (Exception(), Failed("x"), Infrastructure("x"), Held("x"), ValueError())
    assert [code_of(error) for error in errors] == [1, 1, 3, 4, 1]
    assert sorted(MEANING) == [0, 1, 2, 3, 4, 130, 143]
    lost, of_work = (type(name, (type("RayError", (Exception,), {"__module__": "ray.exceptions"}),), {}) for name in
                     ("ActorDiedError", "RayTaskError"))  # fmt: skip
    of_work.__module__ = lost.__module__ = "ray.exceptions"
    assert (code_of(lost()), code_of(of_work())) == (3, 1)


def test_the_second_signal_ends_at_once():
    now, ended = [0.0], []
    stop = interrupts.Stop(lambda: now[0], ended.append)
    stop.came(signal.SIGTERM)
    now[0] = 0.2
    stop.came(signal.SIGTERM)  # `timeout` sends it twice
    assert ended == []
    now[0] = 3.0
    stop.came(signal.SIGINT)
    assert ended == [130]


_STUBBORN = """
import hashlib, threading
from boom_ray.cluster import interrupts
with interrupts.handled():
    try:
        print("ready", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopping", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)  # minutes, as in a library that lets no handler run
"""


def test_also_while_a_library_lets_no_handler_run():
    stubborn = subprocess.Popen([sys.executable, "-c", _STUBBORN], stdout=subprocess.PIPE, text=True)
    try:
        assert stubborn.stdout is not None
        for line in ("ready", "stopping"):
            assert stubborn.stdout.readline().strip() == line
            threading.Event().wait(0.7)
            stubborn.send_signal(signal.SIGINT)
        assert stubborn.wait(5) == 130
    finally:
        stubborn.kill()


def test_signals_reach_the_main_thread_and_the_handlers_go_back():
    before = signal.getsignal(signal.SIGTERM)
    with interrupts.handled() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as ray.init takes it
        interrupts.keep()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert (interrupts.received(), stop.code, interrupts.grace() > 0) == (signal.SIGTERM, 143, True)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (interrupts.current(), interrupts.received(), interrupts.grace()) == (None, None, 0.0)


def test_a_thread_stops_the_command_for_a_reason():
    with interrupts.handled() as stop:
        thread = threading.Timer(0.1, lambda: stop.because(Held("lost")))
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(10)
        thread.join()
        assert (stop.code, interrupts.received(), interrupts.grace()) == (HELD, None, 0.0)
