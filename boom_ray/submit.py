"""A command as a job of a Ray cluster: what is uploaded, how the job is named, what it runs."""

from __future__ import annotations

import asyncio
import glob
import os
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from boom_ray.cluster.follow import Away, Pace, State, follow
from boom_ray.config import BoomError
from boom_ray.exit_codes import DONE, MEANING, Infrastructure, Stopped
from boom_ray.ledger import identity
from boom_ray.recipe import apply_overrides, load_recipe, read_yaml
from boom_ray.redact import redact

if TYPE_CHECKING:
    from boom_ray.cluster.jobs_api import ClusterJobs

COMMANDS = (("run",), ("update",), ("mine",), ("merge",), ("search", "weights"), ("search", "ratios"))
_WHOLE = (("run",), ("mine",), ("search", "ratios"))  # those whose file is a whole recipe
_PLACES = ("path", "sets", "model", "models", "staging")  # keys of a recipe that name files
_RETRY = 2.0  # seconds before a cluster that has no job agent yet is asked again


@dataclass(frozen=True)
class Order:
    """What is to be run: ``boom-ray WORDS[0] RECIPE WORDS[1:] --run-dir RUN_DIR``, with overrides in the recipe itself.

    Nothing of the overrides stands in the job's entry point, which everybody who may look at the cluster can read.
    """

    recipe: Path
    words: Sequence[str] = ("run",)
    overrides: Sequence[str] = ()
    run_dir: str | None = None

    @cached_property
    def command(self) -> tuple[str, ...]:
        """
        Raises:
            BoomError: none of :data:`COMMANDS`.
        """
        for command in COMMANDS:
            if tuple(self.words[: len(command)]) == command:
                return command
        known = ", ".join(" ".join(command) for command in COMMANDS)
        raise BoomError(f"'{' '.join(self.words)}' cannot be submitted with a recipe. After -- goes one of: {known}.")

    @cached_property
    def raw(self) -> dict[str, Any]:
        return apply_overrides(read_yaml(self.recipe), self.overrides)

    @cached_property
    def text(self) -> str:
        """The recipe that is uploaded; ``${VAR}`` stays as it is, the cluster fills it in."""
        if not self.overrides:
            return self.recipe.read_text(encoding="utf-8")
        return yaml.safe_dump(self.raw, sort_keys=False, allow_unicode=True)

    @property
    def entrypoint(self) -> str:
        rest = self.words[len(self.command) :]
        place = ("--run-dir", self.run_dir) if self.run_dir is not None else ()
        return shlex.join(["python", "-m", "boom_ray", *self.command, self.recipe.name, *rest, *place])

    @property
    def run(self) -> str:
        """The same for the same recipe, command and run directory: what is running already is not started twice."""
        return identity([self.entrypoint, self.text])

    @property
    def name(self) -> str:
        """Of the job, another one each time."""
        label = re.sub(r"[^a-z0-9]+", "-", str(self.raw.get("name") or self.recipe.stem).lower()).strip("-")
        return f"{label or 'run'}-{self.run[:8]}-{secrets.token_hex(3)}"

    def check(self) -> None:
        """What can be known before anything is sent.

        Raises:
            BoomError: a mistake in the recipe, files that only this machine has, a secret that would be shown.
        """
        if self.command in _WHOLE and not _unset(self.raw):
            load_recipe(self.recipe, self.overrides)
        if self.run_dir is not None and not re.match(r"/|[a-z][a-z0-9+.-]*://", self.run_dir):
            raise BoomError(
                f"run directory {self.run_dir} is relative, but a job's working directory is a temporary copy. Give an "
                f"absolute path on storage that all nodes share, or s3://BUCKET/PATH."
            )
        if redact(self.entrypoint) != self.entrypoint:
            raise BoomError(
                f"the job's command would show a secret to all who may look at the cluster: "
                f"{redact(self.entrypoint)}. Set credentials in the environment of the cluster's nodes."
            )
        if here := next(iter(_only_here(self.raw)), None):
            raise BoomError(
                f"'{here}' in the recipe is a file of this machine, and only recipe and package are uploaded. Put it "
                f"on storage that all nodes share and name it by its absolute path, or as s3://BUCKET/PATH."
            )


@dataclass(frozen=True)
class Client:
    """Where a job goes, and who is told: ``say`` a line, ``show`` text of its log."""

    address: str
    say: Callable[[str], None]
    show: Callable[[str], None]
    pace: Pace = field(default_factory=Pace)


def submit(order: Order, client: Client, wait: bool = True) -> int:
    """Submit a job, or attach to the one that does the same already; its exit code when it has ended.

    Raises:
        BoomError: a mistake; the cluster refuses.
        Infrastructure: the cluster does not answer.
        Stopped: by Ctrl-C: the job goes on.
    """
    order.check()
    _set_environment(client.address)
    from boom_ray.cluster.jobs_api import ClusterJobs

    jobs = ClusterJobs(client.address)
    job = _insist(lambda: jobs.running(order.run), client)
    if job is not None:
        client.say(f"{job} does this already: attached to it")
    else:
        job = _start(order, jobs, client)
    client.say(f"stop it: {_ray('stop', job, client)}   its log: {_ray('logs', job, client)}")
    if not wait:
        return DONE
    try:
        state = asyncio.run(follow(jobs, job, client.show, client.say, client.pace))
    except KeyboardInterrupt:
        raise Stopped(
            f"detached from {job}, which goes on. The same command attaches to it again; {_ray('stop', job, client)} "
            f"stops it."
        ) from None
    client.say(_last_line(job, state))
    return state.code


def _start(order: Order, jobs: ClusterJobs, client: Client) -> str:
    job = order.name
    with staged(order) as folder:
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        client.say(f"{job}: uploading {sum(sizes) / 1e6:.1f} MB in {len(sizes)} files, to run `{order.entrypoint}`")
        _insist(lambda: jobs.submit(job, order.entrypoint, folder, order.run), client)
    return job


@contextmanager
def staged(order: Order) -> Iterator[Path]:
    """A folder with all that a job is sent: the package and the recipe."""
    with tempfile.TemporaryDirectory(prefix="boom_ray-") as name:
        folder = Path(name)
        package = Path(__file__).parent
        shutil.copytree(package, folder / "boom_ray", ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
        (folder / order.recipe.name).write_text(order.text, encoding="utf-8")
        yield folder


def _insist(call: Callable[[], Any], client: Client) -> Any:
    """The answer of a cluster that may just have been started."""
    end, told = time.monotonic() + client.pace.patience, False
    while True:
        try:
            return call()
        except Away as error:
            if time.monotonic() > end:
                raise Infrastructure(f"{client.address} takes no job: {error}") from None
            if not told:
                client.say(f"the cluster is not ready yet ({error}); trying for {client.pace.patience:.0f} seconds")
            told = True
            time.sleep(_RETRY)


def _set_environment(address: str) -> None:
    """Ray takes the address of its own variables before any that it is given, and no token unless the mode says so."""
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    default = Path.home() / ".ray" / "auth_token"
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or default.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _unset(node: Any) -> bool:
    """Whether a recipe uses variables that only the cluster has: it can be checked there alone."""
    return any(not os.environ.get(name) for name in re.findall(r"\$\{(\w+)\}", yaml.safe_dump(node)))


def _only_here(node: Any, key: str = "") -> Iterator[str]:
    """Relative paths of a recipe that lead to something on this machine."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _only_here(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _only_here(value, key)
    elif isinstance(node, str) and key in _PLACES and _is_here(node):
        yield node


def _is_here(path: str) -> bool:
    if path.startswith(("/", "~")) or "://" in path:
        return False
    return next(glob.iglob(path), None) is not None or Path(path).exists()


def _last_line(job: str, state: State) -> str:
    if state.status == "SUCCEEDED":
        return f"{job} has succeeded"
    if state.status == "STOPPED":
        return f"{job} was stopped; the same command goes on from there"
    code = state.code
    reason = MEANING.get(code, "its last lines say why")
    told = "" if state.exit_code is not None else f" ({(state.message.strip().splitlines() or [''])[0]})"
    return f"{job} has failed with exit code {code}{told}: {reason}"


def _ray(verb: str, job: str, client: Client) -> str:
    return f"ray job {verb} --address {client.address} {job}"
