"""Storage that fails under a whole run: a bucket behind a bad network, nodes without a shared disk, a full disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver_kills import kill_when
from finished_runs import TIMED, published
from flaky_store import Flaky, flaky_proxy
from own_cluster import OwnCluster
from remote_servers import Bucket
from safetensors.numpy import load

from boom_ray.exit_codes import DONE, INFRASTRUCTURE, MISTAKE, Infrastructure
from boom_ray.ledger import Key, Ledger
from boom_ray.stores import files, objects

ROOT = Path(__file__).parents[2]
_MODEL = "model.safetensors"


def _bad_network(number: int, method: str, name: str) -> int | float | str | None:
    """Busy now and then, slow or silent at other times; a member's weights take a while, so that they can be met."""
    if method == "PUT" and "/members/" in name and name.endswith(_MODEL):
        return 1.5
    return {3: 503, 11: 0.3, 17: "lost", 23: "cut"}.get(number % 29)


@pytest.fixture
def flaky(bucket: Bucket) -> Iterator[Flaky]:
    with flaky_proxy(bucket) as proxy:
        yield proxy


def _objects(bucket: Bucket, folder: str) -> dict[str, bytes]:
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=folder)
    names = [entry["Key"] for page in pages for entry in page.get("Contents", ()) if not entry["Key"].endswith("/")]
    return {n.removeprefix(folder): bucket.client.get_object(Bucket="bucket", Key=n)["Body"].read() for n in names}


def _boom(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boom_ray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment or dict(os.environ))


class _Apart(OwnCluster):
    """A cluster whose nodes do not see one another's mirrors: each has a disk of its own in that place."""

    def __init__(self, nodes: int, mirrors: Path) -> None:
        self._mirrors = mirrors
        super().__init__(nodes)

    def add_node(self) -> None:
        mount = f'mount -t tmpfs -o size=2g tmpfs {self._mirrors} && exec "$@"'
        self.before = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        super().add_node()
        self.before = []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give each node a disk of its own")
@pytest.mark.long
def test_a_run_in_a_bucket_on_nodes_that_share_no_disk_survives_a_bad_network_and_a_killed_driver(
    road, bucket, flaky, tmp_path
):
    address, mirrors = flaky.uri("run"), tmp_path / "mirrors"
    mirrors.mkdir()
    flaky.fault = _bad_network
    run = ["run", str(road / "recipe.yaml"), "--run-dir", address]
    with _Apart(2, mirrors) as cluster:
        environment = {**cluster.environment, "BOOM_RAY_MIRRORS": str(mirrors), "PYTHONPATH": str(ROOT)}

        def in_mid_upload() -> bool:
            """The second member's weights are on their way."""
            return sum("/members/" in name and name.endswith(_MODEL) for name in flaky.wrote()) >= 2

        kill_when(in_mid_upload, [sys.executable, "-m", "boom_ray", *run], 240, environment=environment)
        before = _objects(bucket, "run/")
        assert not [name for name in before if name.startswith("published/")]
        done = {n: b for n, b in before.items() if n.endswith("/manifest.json")}
        assert sum(name.startswith("members/") for name in done) == 1
        # the next driver finds an empty disk, as on the head of another cluster
        again = _boom(*run, environment={**environment, "BOOM_RAY_MIRRORS": str(tmp_path / "other")})
    assert again.returncode == DONE, again.stdout + again.stderr
    after = _objects(bucket, "run/")
    assert {name: after[name] for name in done} == done  # nothing that was there is made twice
    (name,) = {n.split("/")[1] for n in after if n.startswith("published/")}
    found = {n.removeprefix(f"published/{name}/"): b for n, b in after.items() if n.startswith("published/")}
    expected = published(road / "run")
    assert {n: b for n, b in found.items() if n not in (*TIMED, _MODEL)} == {
        n: b for n, b in expected.items() if n != _MODEL
    }
    ours, theirs = load(found[_MODEL]), load(expected[_MODEL])
    for name, tensor in theirs.items():  # these nodes have one core, the undisturbed run had the machine's
        np.testing.assert_allclose(ours[name], tensor, atol=1e-4, err_msg=name)
    assert not [n for n in after if ".tmp-" in n or "/checkpoints/" in n]
    third = _boom(*run, environment={**os.environ, "BOOM_RAY_MIRRORS": str(tmp_path / "third")})
    assert third.returncode == DONE
    assert "nothing planned" in third.stdout


_UPLOAD = """
import sys
from boom_ray.ledger import Key, Ledger
with Ledger.open(sys.argv[1], "r").stage(Key("members", "member-0", "0" * 16)) as stage:
    for number in range(20):
        (stage.path / f"{number:02d}.bin").write_bytes(bytes([number]) * 50_000)
"""


def test_a_writer_that_is_killed_in_mid_upload_leaves_nothing_that_is_read(bucket, flaky, monkeypatch, tmp_path):
    key = Key("members", "member-0", "0" * 16)
    flaky.fault = lambda number, method, name: 0.1 if method == "PUT" else None
    monkeypatch.setenv("BOOM_RAY_MIRRORS", str(tmp_path / "killed"))
    command = [sys.executable, "-c", _UPLOAD, flaky.uri("run")]
    kill_when(lambda: sum(name.endswith(".bin") for name in flaky.wrote()) > 8, command, 60)
    left = _objects(bucket, f"run/{key.kind}/")
    assert sum(name.endswith(".bin") for name in left) in range(1, 20)
    monkeypatch.setenv("BOOM_RAY_MIRRORS", str(tmp_path / "next"))
    ledger = Ledger.open(flaky.uri("run"), "r")
    assert not ledger.has(key)
    assert list(ledger.manifests(key.kind)) == []
    ledger.sweep()
    assert _objects(bucket, f"run/{key.kind}/") == {}
    subprocess.run(command, check=True)
    ledger.verify(key)


def test_errors_that_pass_are_tried_again_and_those_that_stay_are_not(flaky, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("BOOM_RAY_MIRRORS", str(tmp_path / "one"))
    ledger, key = Ledger.open(flaky.uri("run"), "r"), Key("members", "member-0", "0" * 16)
    flaky.fault = lambda number, method, name: (None, 503, None, "lost", 0.05, "cut")[number % 6]
    with ledger.stage(key) as stage:
        for number in range(4):
            (stage.path / f"{number}.bin").write_bytes(bytes([number]) * 5000)
    flaky.fault = lambda number, method, name: (503, 0.05, "cut")[number % 3] if number % 4 else None
    monkeypatch.setenv("BOOM_RAY_MIRRORS", str(tmp_path / "two"))
    Ledger.open(flaky.uri("run"), "r").verify(key)

    flaky.asked.clear()
    flaky.fault = lambda number, method, name: 403
    with pytest.raises(Infrastructure, match=r"s3://bucket/run/report/x.html cannot be written: .*credentials"):
        ledger.write_text("report/x.html", "x")
    assert len(flaky.asked) == 1


def test_a_store_that_stays_away_is_given_up_after_a_bounded_number_of_attempts(flaky, monkeypatch, tmp_path):
    monkeypatch.setenv("BOOM_RAY_MIRRORS", str(tmp_path))
    ledger = Ledger.open(flaky.uri("run"), "r")
    waits: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waits.append)
    flaky.asked.clear()
    flaky.fault = lambda number, method, name: 503
    with pytest.raises(Infrastructure, match=f"{objects.ATTEMPTS} attempts failed"):
        ledger.has(Key("members", "member-0", "0" * 16))
    assert len(waits) == objects.ATTEMPTS - 1
    assert len(flaky.asked) <= 4 * objects.ATTEMPTS  # the client's own attempts
    assert len({round(wait / 4**n, 6) for n, wait in enumerate(waits[:3])}) == 3  # never in step with one another


def test_a_bucket_that_is_not_there_or_refuses_is_told_at_once(road, bucket, flaky, tmp_path):
    def ended(uri: str, fault: Any) -> tuple[int, str]:
        flaky.fault = lambda number, method, name: fault
        environment = {**os.environ, "BOOM_RAY_MIRRORS": str(tmp_path)}
        done = _boom("plan", str(road / "recipe.yaml"), "--run-dir", uri, environment=environment)
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
        return done.returncode, done.stderr

    code, told = ended(flaky.uri("run", "nowhere"), None)
    assert (code, "Check the name" in told) == (MISTAKE, True)
    flaky.asked.clear()
    code, told = ended(flaky.uri("run"), 403)
    assert (code, "credentials" in told, len(flaky.asked)) == (MISTAKE, True, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own; the test says how large."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("only root may make a small disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokens", pytest.param("member", marks=pytest.mark.long)])
def test_a_disk_that_is_full_ends_the_run_with_path_and_bytes_and_the_next_one_goes_on(road, small_disk, stage):
    """The run stands on a disk that has a little room left: for part of what the stage writes."""
    run = small_disk / "run"
    kinds = ("corpus", "start") if stage == "tokens" else ("corpus", "start", "tokens", "bags", "base")
    for kind in kinds:
        shutil.copytree(road / "run" / kind, run / kind)
    shutil.copy2(road / "run" / "run.json", run)
    room = _bytes(road / "run" / "tokens") // 2 if stage == "tokens" else 48 << 10
    used = sum(-(-f.stat().st_blocks * 512 // 4096) * 4096 for f in small_disk.rglob("*"))
    resize = ["mount", "-o", f"remount,size={used + room + (24 << 10)}", str(small_disk)]
    subprocess.run(resize, check=True)
    before = {p: p.read_bytes() for kind in kinds for p in (run / kind).rglob("*") if p.is_file()}
    full = _boom("run", str(road / "recipe.yaml"), "--run-dir", str(run))
    assert full.returncode == INFRASTRUCTURE, full.stdout + full.stderr
    assert str(run) in full.stderr
    assert "bytes" in full.stderr
    assert "Traceback" not in full.stderr
    assert {p: p.read_bytes() for p in before} == before
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    if stage == "member":
        again = _boom("run", str(road / "recipe.yaml"), "--run-dir", str(run))
        assert again.returncode == DONE, again.stdout + again.stderr
        assert published(run) == published(road / "run")
        assert not [p for p in run.rglob("*") if p.name.startswith(".tmp-")]
    else:
        Ledger(run).sweep()
        assert not [p for p in run.rglob("*") if p.name.startswith(".tmp-")]


def _bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
