"""The quickstart under a killer: workers, actors and nodes end by chance, the driver ends twice, and what is published
is what a run publishes that is left alone.

    python tests/faults/soak.py --minutes 20          # the whole quickstart, a kill every 60 to 120 seconds

A cluster of its own: a head without CPUs, which is never killed, and two nodes of one CPU each. A node that is killed
is replaced at once, as an autoscaler would do. A driver that ended is started again with the same command. Runs follow
one another until the minutes are over. Prints every kill; ends with 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from finished_runs import published
from own_cluster import OwnCluster, session_of

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "quickstart.yaml"
NODES = 2
INFRASTRUCTURE = 3  # the exit code that asks for another start
STARTS = 4  # of one run, beside those that follow a kill of the driver
IDLE = "IDLE"
# Ray Data's stay with the cluster. Ray Train's asks a dashboard whether its controller is dead; this head has none
FOR_GOOD = {"_StatsActor", "_AutoscalingCoordinatorActor", "PlacementGroupCleaner"}


@dataclass(frozen=True)
class Plan:
    """``gaps``: seconds between two kills, from and to; ``settings`` of the recipe."""

    minutes: float
    gaps: tuple[float, float] = (60.0, 120.0)
    settings: tuple[str, ...] = ()
    seed: int = 17


@dataclass
class Driver:
    """The command of a run, and its process while there is one."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    kills: int = 0
    codes: list[int] = field(default_factory=list)
    leaders: list[int] = field(default_factory=list)

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.leaders.append(self.process.pid)

    def finish(self) -> None:
        """Start it until it has done its work.

        Raises:
            AssertionError: it ended with a code that does not ask for another start, or too often.
        """
        while True:
            kills = self.kills
            self.start()
            assert self.process is not None
            code = self.process.wait()
            if code == 0:
                return
            if self.kills == kills:
                self.codes.append(code)
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
                assert code == INFRASTRUCTURE, f"the driver ended with {code}:\n{tail}"
                assert len(self.codes) < STARTS, f"the driver gave up {STARTS} times:\n{tail}"

    def kill(self) -> bool:
        """Whether there was one to kill."""
        if self.process is None or self.process.poll() is not None:
            return False
        self.kills += 1
        self.process.kill()
        return True


class Killer(threading.Thread):
    """Ends something by chance, again and again; ``kills`` names what."""

    def __init__(
        self, cluster: OwnCluster, driver: Driver, plan: Plan, driver_at: Sequence[float], until: float
    ) -> None:
        super().__init__(daemon=True)
        self._cluster, self._driver, self._plan = cluster, driver, plan
        self._driver_at, self._until = list(driver_at), until
        self._chance = random.Random(plan.seed)
        self._over = threading.Event()
        self.kills: list[str] = []

    def run(self) -> None:
        begun = due = time.monotonic()
        due += self._chance.uniform(*self._plan.gaps)
        while not self._over.wait(1.0):
            self._cluster.keep_up()
            if time.monotonic() < due:
                continue
            due = time.monotonic() + self._chance.uniform(*self._plan.gaps)
            if self._driver_at and time.monotonic() - begun >= self._driver_at[0]:
                if self._driver.kill():
                    del self._driver_at[0]
                    self._say("driver")
            elif time.monotonic() < self._until:
                self._say(self._kill_one(self._chance.choice(("worker", "actor", "node"))))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _kill_one(self, kind: str) -> str:
        if kind == "node":
            victim = self._chance.choice(self._cluster.nodes)
            self._cluster.kill_node(victim)
            self._cluster.add_node()
            return "node"
        workers = self._cluster.workers()
        chosen = [w for w in workers if w[1] != IDLE and is_actor(w[1]) == (kind == "actor")]
        chosen = chosen or [w for w in workers if w[1] != IDLE] or workers
        if not chosen:
            return f"{kind}: there was none"
        process, title = self._chance.choice(chosen)
        with suppress(psutil.Error):
            process.kill()
        return f"{'actor' if is_actor(title) else 'worker'} {title}"

    def _say(self, what: str) -> None:
        self.kills.append(what)
        print(f"[{time.strftime('%H:%M:%S')}] killed: {what}", flush=True)


def is_actor(title: str) -> bool:
    """Ray calls an actor by its class, with the method that it is in, and a task by its function."""
    name = title.lstrip("_")
    return name[:1].isupper() or "." in name.partition("(")[0]


@dataclass(frozen=True)
class Outcome:
    """``equal``: every run under the killer published what the one left alone did. ``left``: temporary files.
    ``orphans``: processes of a run that outlived it."""

    seconds_alone: float
    runs: int
    kills: list[str]
    restarts: int
    equal: bool
    left: list[str]
    orphans: list[str]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(k.split()[0] for k in self.kills).items())
        return (
            f"left alone {self.seconds_alone:.0f} s; {self.runs} runs under {len(self.kills)} kills ({kinds}), "
            f"{self.restarts} starts after exit code {INFRASTRUCTURE}; same bytes: {self.equal}; "
            f"temporary files: {self.left or 'none'}; orphans: {self.orphans or 'none'}"
        )


def soak(folder: Path, plan: Plan) -> Outcome:
    """Run the recipe once alone and then under the killer; all below ``folder``."""
    kills, left, orphans = list[str](), list[str](), list[str]()
    runs, restarts, equal = 0, 0, True
    with OwnCluster(NODES) as cluster:
        cluster.settle()
        alone = _driver(folder, "alone", cluster, plan)
        begun = time.monotonic()
        alone.finish()
        took = time.monotonic() - begun
        print(f"[{time.strftime('%H:%M:%S')}] left alone: {took:.0f} s", flush=True)
        until = time.monotonic() + 60 * plan.minutes
        while not runs or time.monotonic() < until:
            runs += 1
            driver = _driver(folder, f"run-{runs}", cluster, plan)
            killer = Killer(cluster, driver, plan, (0.3 * took, 0.8 * took) if runs == 1 else (), until)
            killer.start()
            try:
                driver.finish()
            finally:
                killer.stop()
            kills, restarts = kills + killer.kills, restarts + len(driver.codes)
            equal &= published(folder / f"run-{runs}") == published(folder / "alone")
            left += temporary(folder / f"run-{runs}")
            orphans += [*_outlived(cluster), *_names(driver.leaders)]
            print(f"[{time.strftime('%H:%M:%S')}] run {runs} is done", flush=True)
    return Outcome(took, runs, kills, restarts, equal, left, orphans)


def _driver(folder: Path, name: str, cluster: OwnCluster, plan: Plan) -> Driver:
    settings = [part for setting in plan.settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "boom_ray", "run", str(RECIPE), "--run-dir", str(folder / name), *settings]
    return Driver(command, cluster.environment, folder / f"{name}.log")


def temporary(run_dir: Path) -> list[str]:
    """What nobody should find after the end of a run."""
    return [path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if ".tmp" in path.name]


def _outlived(cluster: OwnCluster, seconds: float = 60) -> list[str]:
    """Workers that still do something when the driver is gone; Ray ends them within seconds."""
    deadline = time.monotonic() + seconds
    while (busy := [t for _, t in cluster.workers() if t not in {IDLE, *FOR_GOOD}]) and time.monotonic() < deadline:
        time.sleep(0.5)
    return busy


def _names(leaders: Sequence[int]) -> list[str]:
    """What is left of the sessions of drivers."""
    return [str(process) for leader in leaders for process in session_of(leader)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="how long to kill (default: 20)")
    parser.add_argument(
        "--gaps", type=float, nargs=2, default=(60, 120), help="seconds between kills (default: 60 120)"
    )
    parser.add_argument("--set", dest="settings", action="append", default=[], help="override one key of the recipe")
    parser.add_argument("--seed", type=int, default=17)
    given = parser.parse_args()
    plan = Plan(given.minutes, tuple(given.gaps), tuple(given.settings), given.seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        outcome = soak(Path(folder), plan)
    print(outcome)
    sys.exit(0 if outcome.equal and not outcome.left and not outcome.orphans else 1)


if __name__ == "__main__":
    main()
