"""The lease on a run directory: one driver at a time writes there.

``lease.json`` names the driver that holds the run and until when; a thread of the driver renews it. It is taken over
when it has expired, and at once where its process is known to be dead. A driver that finds another one at work ends
with exit code 4; one whose lease was taken over (it was frozen, or its storage was) commits nothing any more.

The clocks of the hosts have to agree to within a term. A wrong one costs a driver its lease, not the run its bytes.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from boom_ray.cluster import interrupts
from boom_ray.config import BoomError
from boom_ray.exit_codes import Held
from boom_ray.ledger import Ledger
from boom_ray.stores.slots import Slot

LEASE = "lease.json"
TERM = 60.0  # seconds that a lease lasts
RENEW = 10.0  # seconds between two renewals
_LOOK = 1.0  # seconds between two looks at a lease that is not renewed

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        token: of this one lease, chosen by chance.
        machine: where ``pid`` means something: the kernel's boot and the process namespace.
        process: when that process was started, in ticks of that kernel: pids are used again.
        job: submission id, of a Ray job.
        since, expires: seconds since 1970.
    """

    token: str
    host: str
    pid: int
    machine: str
    process: str
    job: str | None
    since: float
    expires: float

    @classmethod
    def here(cls, now: float) -> Holder:
        pid = os.getpid()
        place = (socket.gethostname(), pid, this_machine(), process_start(pid) or "", _job())
        return cls(secrets.token_hex(8), *place, since=now, expires=now + TERM)

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """None where the text says nothing."""
        try:
            raw = json.loads(text)
            found = cls(**{field.name: raw[field.name] for field in fields(cls)})
            return replace(found, pid=int(found.pid), since=float(found.since), expires=float(found.expires))
        except (ValueError, TypeError, KeyError):
            return None

    @property
    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def alive(self) -> bool | None:
        """Whether its process runs; None where this machine cannot say."""
        if not self.machine or self.machine != this_machine():
            return None
        return process_start(self.pid) == self.process

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {_clock(self.since)}"


@dataclass(frozen=True)
class Clock:
    """What time it is, and how to let some pass."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


class Lease:
    """One driver's hold on a run directory. :func:`held` is how it is used."""

    def __init__(self, slot: Slot, where: str, clock: Clock = Clock()) -> None:
        self._slot, self._where, self._clock = slot, where, clock
        self._lock = threading.Lock()  # of the renewing thread and of those that commit
        self._mine = Holder.here(clock.now())
        self.lost: Held | None = None

    def acquire(self, echo: Echo = lambda line: None) -> None:
        """Take the lease. One whose driver cannot be looked up is waited for until it is renewed or expires.

        Raises:
            Held: another driver is at work.
        """
        seen, until = None, 0.0
        while True:
            text, now = self._slot.read(), self._clock.now()
            if text is None:
                self._mine = replace(self._mine, since=now, expires=now + TERM)
                if self._slot.create(self._mine.text):
                    return
                continue
            holder = Holder.parse(text)
            alive = holder.alive if holder else None
            if alive is False or (holder and holder.expires <= now) or (text == seen and now >= until):
                if self._slot.take(text):
                    echo(f"taking over {self._where} from {holder or 'a driver without a name'}, which is gone")
                else:
                    self._clock.sleep(_LOOK)  # somebody else is about to
                continue
            if alive or (seen is not None and text != seen):
                raise self._held(holder)
            if seen is None:
                seen, until = text, now + TERM
                echo(f"{self._where} is leased to {holder or 'a driver'}: waiting to see whether it is renewed")
            self._clock.sleep(_LOOK)

    def renew(self) -> None:
        """Make it last for another term.

        Raises:
            Held: it is another's by now.
        """
        with self._lock:
            self._renew()

    def check(self) -> None:
        """The ledger's guard: before anything is committed, is this still the driver that may?

        Raises:
            Held: it is not.
        """
        with self._lock:
            if self.lost:
                raise self.lost
            text = self._slot.read()
            if text != self._mine.text or self._clock.now() >= self._mine.expires:
                self._renew()

    def _renew(self) -> None:
        if self.lost:
            raise self.lost
        now, text = self._clock.now(), self._slot.read()
        fresh = replace(self._mine, expires=now + TERM)
        if text is not None and text != self._mine.text:
            self.lost = self._taken(Holder.parse(text))
            raise self.lost
        if text is not None and now < self._mine.expires:
            self._slot.replace(fresh.text)
        elif (text is not None and not self._slot.take(text)) or not self._slot.create(fresh.text):
            self.lost = self._taken(Holder.parse(self._slot.read() or ""))
            raise self.lost
        self._mine = fresh

    def release(self) -> None:
        """Give it back, if it is still this driver's."""
        with self._lock, suppress(OSError):
            self._slot.take(self._mine.text)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew it from a thread; stop the main thread where it is lost."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(RENEW):
                try:
                    self.renew()
                except Held as lost:
                    if stop := interrupts.current():
                        stop.because(lost)
                    return
                except (OSError, BoomError):  # storage has a weak moment; the term is six renewals long
                    continue

        thread = threading.Thread(target=work, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _held(self, holder: Holder | None) -> Held:
        until = f"Its lease lasts until {_clock(holder.expires)} and is renewed while it runs. " if holder else ""
        return Held(
            f"{self._where} is held by {holder or 'another driver'}. {until}Wait for it or stop it; what it has "
            f"finished then counts here, too."
        )

    def _taken(self, holder: Holder | None) -> Held:
        return Held(
            f"{self._where} was taken over by {holder or 'another driver'}: this driver did not renew its lease in "
            f"time. It commits nothing more; the other one goes on from what is there."
        )


@contextmanager
def held(ledger: Ledger, echo: Echo) -> Iterator[None]:
    """Hold the run directory in the block: all that writes there belongs into it.

    When the block ends early, half-written artifacts are removed: nobody else was writing.

    Raises:
        Held: another driver holds it, or has taken it over meanwhile.
    """
    lease = Lease(ledger.slot(LEASE), f"run directory {ledger}")
    lease.acquire(echo)
    before, ledger.guard = ledger.guard, lease.check
    try:
        with lease.renewed():
            yield
    except BaseException:
        if lease.lost:
            raise lease.lost from None
        with suppress(OSError, BoomError):
            ledger.sweep()
        raise
    finally:
        ledger.guard = before
        lease.release()


def this_machine() -> str:
    """The kernel's boot and this process' namespace of pids; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; None of one that is gone or only waits to be reaped."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else rest[18]


def _job() -> str | None:
    try:
        metadata = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("metadata") or {}
    except ValueError:
        return None
    return metadata.get("job_submission_id")


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
