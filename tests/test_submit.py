"""Submitting: what is uploaded, what is refused before, and a log that is shown once however often its stream is cut.

The cluster here is a small HTTP server on 127.0.0.1 that speaks Ray's Jobs API to Ray's own client; a real one is in
tests/faults/test_submit_faults.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from boom_ray.cluster.follow import Away, Pace, Shown, State, follow
from boom_ray.config import BoomError
from boom_ray.exit_codes import Infrastructure
from boom_ray.submit import Client, Order, staged, submit

PROJECT = Path(__file__).parent.parent
TOKEN = "right-token-0123456789"
LOG = [f"line {i}: ø {'x' * (i % 7)}\n" for i in range(40)]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    raw = {"name": "My.Run", "base": {"build": {"layers": 1}}, "corpus": {"datasets": [{"path": "/shared/rows.jsonl"}]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "mine.yaml"


def test_overrides_go_into_the_recipe_and_not_into_the_entry_point(recipe):
    order = Order(recipe, ("run", "--replan"), ("train.epochs=3", "seed=7"), "/shared/a run")
    order.check()
    assert order.entrypoint == "python -m boom_ray run mine.yaml --replan --run-dir '/shared/a run'"
    assert yaml.safe_load(order.text)["train"] == {"epochs": 3}
    assert Order(recipe).text == recipe.read_text(), "as it is, comments and all"
    assert Order(recipe, ("search", "weights", "--trials", "5")).entrypoint == (
        "python -m boom_ray search weights mine.yaml --trials 5"
    )


def test_the_same_run_has_the_same_identity_and_each_job_its_own_name(recipe):
    one, other = Order(recipe, run_dir="/a"), Order(recipe, run_dir="/b")
    assert one.run == Order(recipe, run_dir="/a").run
    assert len({one.run, other.run, Order(recipe, ("update",), run_dir="/a").run}) == 3
    assert one.run != Order(recipe, overrides=("seed=2",), run_dir="/a").run
    assert one.name != one.name
    assert one.name.startswith(f"my-run-{one.run[:8]}-")


def test_package_and_recipe_are_all_that_is_uploaded(recipe):
    with staged(Order(recipe)) as folder:
        files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    assert not folder.exists()
    assert {name.partition("/")[0] for name in files} == {"boom_ray", "mine.yaml"}
    assert {Path(name).suffix for name in files} <= {".py", ".yaml", ".typed"}
    assert sum(files.values()) < 3e6


def test_shipped_recipes_can_be_submitted(monkeypatch):
    monkeypatch.chdir(PROJECT)
    for file in sorted(PROJECT.glob("jobs/recipes/*.yaml")):
        Order(file).check()


def test_every_job_is_a_command_with_help():
    jobs = {file.stem: [sys.executable, str(file), "--help"] for file in sorted(PROJECT.glob("jobs/*.py"))}
    assert set(jobs) == {"analyze", "evaluate", "merge", "run", "search_ratios", "search_weights", "study", "update"}
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    started = {
        name: subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for name, command in jobs.items()
    }
    for name, process in started.items():
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert name.replace("_", " ") in out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"words": ("evaluate", "model/")}, "one of: run, update"),
        ({"run_dir": "runs/mine"}, "relative"),
        ({"overrides": ("train.epoch=2",)}, "did you mean 'epochs'"),
        ({"overrides": ("corpus.datasets.0.path=rows.jsonl",)}, "only recipe and package are uploaded"),
        ({"overrides": ("corpus.datasets.0.path=r*.jsonl",)}, "only recipe and package are uploaded"),
        ({"run_dir": "s3://key:secretsecret@bucket/run"}, "would show a secret"),
        ({"words": ("run", "--token=hf_0123456789abcdefghij")}, "would show a secret"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sent(recipe, changes, told, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    (recipe.parent / "rows.jsonl").write_text("{}")
    with pytest.raises(BoomError, match=told) as error:
        Order(recipe, **changes).check()
    assert "secretsecret" not in str(error.value)
    assert "hf_0123456789abcdefghij" not in str(error.value)


def test_a_recipe_that_needs_the_clusters_environment_is_checked_there(recipe, monkeypatch):
    monkeypatch.delenv("CLUSTERS_OWN", raising=False)
    order = Order(recipe, overrides=("corpus.datasets.0.path=${CLUSTERS_OWN}/rows.jsonl", "nonsense=1"))
    order.check()
    assert "${CLUSTERS_OWN}/rows.jsonl" in order.text


def test_exit_codes_of_jobs():
    codes = [
        (State("SUCCEEDED", 0), 0),
        (State("FAILED", 2), 2),
        (State("FAILED", 4), 4),
        (State("FAILED", -9), 137),
        (State("FAILED", None, "the supervisor died"), 3),
        (State("STOPPED"), 143),
    ]
    assert [state.code for state, _ in codes] == [code for _, code in codes]


def test_what_was_shown_is_passed_over_in_pieces_of_any_size():
    text = "".join(LOG)
    for size in (1, 7, 1000, 10**6):
        out: list[str] = []
        shown = Shown(out.append)
        for end in (0, 1, 250, 249, 600, len(text)):
            take = shown.stream()
            for start in range(0, end, size):
                take(text[start : min(start + size, end)])
        assert "".join(out) == text


class Cut:
    """A cluster whose stream ends after a few pieces each time and that is away for a while, and a job's true end."""

    def __init__(self, pieces: int, ends: State, away: int = 0, silent: bool = False) -> None:
        self.pieces, self.ends, self.away, self.silent = pieces, ends, away, silent
        self.streams = 0

    def state(self, job: str) -> State:
        if self.away and self.streams >= 2:
            self.away -= 1
            raise Away("no route")
        return self.ends if self.streams * self.pieces >= len(LOG) else State("RUNNING")

    def log(self, job: str) -> str:
        return "".join(LOG)

    async def tail(self, job: str) -> AsyncIterator[str]:
        self.streams += 1
        for piece in LOG[: self.streams * self.pieces]:
            yield piece
        if self.silent:
            await asyncio.sleep(60)
        if self.streams % 2:
            raise Away("connection reset")


PACE = Pace(patience=5.0, look=0.02, silence=0.05, pause=0.001)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("pieces", [3, 17, 100])
def test_a_cut_or_silent_stream_is_taken_up_where_it_was(pieces, silent):
    out: list[str] = []
    jobs = Cut(pieces, State("FAILED", 7), away=3, silent=silent)
    state = asyncio.run(follow(jobs, "job", out.append, lambda line: None, PACE))
    assert "".join(out) == "".join(LOG)
    assert state.code == 7


def test_a_cluster_that_stays_away_is_given_up():
    said: list[str] = []
    with pytest.raises(Infrastructure, match="submit again"):
        asyncio.run(follow(Cut(3, State("SUCCEEDED", 0), away=10**6), "job", lambda text: None, said.append,
                           Pace(patience=0.1, look=0.02, silence=0.05, pause=0.01)))  # fmt: skip
    assert len([line for line in said if "does not answer" in line]) == 1


class Head:
    """The Jobs API of one head: it takes a job, streams LOG with two cuts, and says how the job ended."""

    def __init__(self, code: int) -> None:
        self.code, self.streams = code, 0
        self.packages: dict[str, int] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.refusals = 0

    def routes(self) -> Any:
        from aiohttp import web

        @web.middleware
        async def token(request: Any, handler: Any) -> Any:
            if request.headers.get("Authorization") == f"Bearer {TOKEN}":
                return await handler(request)
            self.refusals += 1
            return web.Response(status=401 if "Authorization" not in request.headers else 403, text="token")

        app = web.Application(middlewares=[token], client_max_size=10**8)
        app.router.add_get("/api/version", self._version)
        app.router.add_route("*", "/api/packages/{protocol}/{name}", self._package)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_get("/api/jobs/{job}", self._info)
        app.router.add_get("/api/jobs/{job}/logs", self._log)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        return app

    async def _version(self, request: Any) -> Any:
        return self._json({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})

    async def _package(self, request: Any) -> Any:
        from aiohttp import web

        name = request.match_info["name"]
        if request.method == "PUT":
            self.packages[name] = len(await request.read())
        return web.Response(status=200 if name in self.packages else 404)

    async def _submit(self, request: Any) -> Any:
        from aiohttp import web

        job = await request.json()
        if job["submission_id"] in self.jobs:
            return web.Response(status=500, text=f"Job {job['submission_id']} already exists")
        self.jobs[job["submission_id"]] = job
        if len(self.jobs) == 1:  # the answer to the first attempt is lost
            return web.Response(status=503, text="busy")
        return self._json({"job_id": job["submission_id"], "submission_id": job["submission_id"]})

    def _details(self, name: str) -> dict[str, Any]:
        ended = self.streams >= 3
        status = {"status": ("FAILED" if self.code else "SUCCEEDED"), "driver_exit_code": self.code} if ended else {}
        told = {"type": "SUBMISSION", "submission_id": name, "status": "RUNNING", "message": "", **status}
        return {**told, "entrypoint": self.jobs[name]["entrypoint"], "metadata": self.jobs[name]["metadata"]}

    async def _list(self, request: Any) -> Any:
        return self._json([self._details(name) for name in self.jobs])

    async def _info(self, request: Any) -> Any:
        return self._json(self._details(request.match_info["job"]))

    async def _log(self, request: Any) -> Any:
        return self._json({"logs": "".join(LOG)})

    async def _tail(self, request: Any) -> Any:
        from aiohttp import web

        self.streams += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for piece in LOG[: self.streams * 14]:
            await socket.send_str(piece)
        if self.streams < 3:
            request.transport.abort()  # as a forwarded port that breaks
        return socket

    @staticmethod
    def _json(value: Any) -> Any:
        from aiohttp import web

        return web.json_response(value)


@pytest.fixture
def head() -> Iterator[Callable[[int], tuple[Head, str]]]:
    """``head(code)``: a head whose job ends with this code, and its address."""
    from aiohttp import web

    loops: list[tuple[Any, threading.Thread]] = []

    def start(code: int) -> tuple[Head, str]:
        one, loop, ports, ready = Head(code), asyncio.new_event_loop(), [], threading.Event()

        async def serve() -> None:
            runner = web.AppRunner(one.routes())
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
            await site.start()
            ports.append(runner.addresses[0][1])
            ready.set()

        def work() -> None:
            loop.create_task(serve())
            loop.run_forever()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        loops.append((loop, thread))
        assert ready.wait(10)
        return one, f"http://127.0.0.1:{ports[0]}"

    yield start
    for loop, thread in loops:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


_SUBMIT = """
import sys
from boom_ray.cli import main
calls = " ".join(sys.argv[1:]).split(" ; ")
for call in calls:
    sys.argv = ["boom-ray", "submit", *call.split()]
    try:
        main()
    except SystemExit as ended:
        if ended.code or call is calls[-1]:
            raise
"""


def run_submit(address: str, token: str, *calls: str) -> tuple[int, str, str]:
    """``boom-ray submit CALL`` for each call, in a process of its own: Ray reads the token once."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = {**clean, "RAY_ADDRESS": "127.0.0.1:1", "RAY_AUTH_TOKEN": token}  # the option comes before Ray's own
    whole = [f"{call} --address {address} --patience 5" for call in calls]
    command = [sys.executable, "-c", _SUBMIT, " ; ".join(whole)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_a_job_is_submitted_followed_through_cuts_and_ends_with_its_code(head, recipe):
    one, address = head(7)
    code, out, err = run_submit(address, TOKEN, f"{recipe} --run-dir /shared/run")
    assert code == 7, err
    assert out == "".join(LOG), "every line once"
    (job,) = one.jobs.values()
    assert job["entrypoint"] == "python -m boom_ray run mine.yaml --run-dir /shared/run"
    assert job["metadata"] == {"boom_ray_run": Order(recipe, run_dir="/shared/run").run}
    assert set(job["runtime_env"]) == {"working_dir", "env_vars"}
    assert TOKEN not in json.dumps(job)
    assert 0 < next(iter(one.packages.values())) < 3e6
    assert "uploading" in err
    assert "failed with exit code 7" in err


def test_without_waiting_and_again_attaches(head, recipe):
    one, address = head(0)
    code, out, err = run_submit(address, TOKEN, f"{recipe} --no-wait", str(recipe))
    assert (code, out, len(one.jobs)) == (0, "".join(LOG), 1), err
    assert err.count("ray job stop") == 2
    assert err.count("attached") == 1


def test_a_cluster_refuses_who_has_another_token(head, recipe):
    one, address = head(0)
    code, out, err = run_submit(address, "wrong-token-0123456789", str(recipe))
    assert (code, out, len(one.jobs)) == (2, "", 0)
    assert one.refusals == 1
    assert err.startswith("boom-ray: ")
    assert err.count("\n") == 1
    assert "RAY_AUTH_TOKEN_PATH" in err
    assert "wrong-token" not in err


def test_where_nothing_answers_the_infrastructure_is_at_fault(recipe, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # put back after the test
    client = Client("http://127.0.0.1:9", lambda line: None, lambda text: None, PACE)
    with pytest.raises(Infrastructure, match=r"127\.0\.0\.1:9 .*forward"):
        submit(Order(recipe), client)


def test_an_address_of_something_else_is_refused():
    from boom_ray.commands.submit import address_of

    assert address_of("localhost:8265/") == "http://localhost:8265"
    for text in ("ray://head:10001", "s3://bucket"):
        with pytest.raises(BoomError, match="dashboard"):
            address_of(text)
