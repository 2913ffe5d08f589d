"""A whole run with secrets in its environment and in its recipe, first broken, then whole: none of them is anywhere, no
server listens where another machine could reach it, and nothing stays behind a door that was left open."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_servers import Bucket
from road_data import recipe_text, write_corpus, write_sets

pytestmark = pytest.mark.long

CANARY = "c4nary"
SECRETS = {
    "HF_TOKEN": f"hf_{CANARY * 4}",
    "AWS_ACCESS_KEY_ID": f"AKIA{CANARY}OFAMAZON",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}/of+amazon",
    "AWS_SESSION_TOKEN": f"{CANARY}session==",
    "WANDB_API_KEY": f"{CANARY}ofwandb",
    "STORE_SECRET": f"{CANARY}%2Fof%2Bthe%2Bstore",
}
_LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


@pytest.fixture
def ray_home() -> Iterator[Path]:
    """Where Ray keeps its logs; its sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="door"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_run_with_secrets_keeps_them_and_its_doors_shut(
    bucket: Bucket, tmp_path: Path, ray_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in write_corpus(tmp_path / "corpus").iterdir():
        bucket.put(f"corpus/{file.name}", file.read_bytes())
    bucket.put("corpus/bad.jsonl", b'{"query": "no positive", "task_type": "retrieval"}\n')
    address = bucket.uri("corpus/*.jsonl").replace("s3://", f"s3://{CANARY}access:${{STORE_SECRET}}@")
    recipe = recipe_text(Path("CORPUS"), write_sets(tmp_path / "eval")).replace("CORPUS", address)
    recipe = recipe.replace("trials: 16", "trials: 4").replace("evaluate: {", "evaluate: {members: false, cap: 20, ")
    (tmp_path / "recipe.yaml").write_text(recipe)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_TMPDIR", str(ray_home))
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)  # of the tests; a user has not set it

    code, printed, _ = _run(tmp_path)
    assert code == 2, printed
    assert "bad.jsonl:1: " in printed
    assert (tmp_path / "run" / "scratch" / "corpus").is_dir(), "what a failed run leaves is looked at, too"
    _no_canary(tmp_path / "run", ray_home, printed)

    code, printed, listening = _run(tmp_path, "--set", "corpus.max_bad_fraction=0.5")
    assert code == 0, printed
    _no_canary(tmp_path / "run", ray_home, printed)
    assert listening, "a cluster of one machine has servers"
    assert {(where, title) for where, title in listening if where not in _LOOPBACK} == set()
    written = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "s3://bucket/corpus/*.jsonl?endpoint_override=" in written

    published = next((tmp_path / "run" / "published").iterdir())
    pushed = _boom("push", str(published), "me/model", "--dry-run")
    assert pushed.returncode == 0, pushed.stderr
    assert CANARY not in pushed.stdout + pushed.stderr
    assert "model.safetensors" in pushed.stdout


def _boom(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boom_ray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def _run(root: Path, *options: str) -> tuple[int, str, set[tuple[str, str]]]:
    """(exit code, output, hexadecimal addresses that processes of the run listened on, with their titles)."""
    mark = f"BOOM_RAY_DOORS={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    command = [sys.executable, "-m", "boom_ray", "run", str(root / "recipe.yaml"), "--run-dir", str(root / "run")]
    with open(root / "log", "w") as log:
        process = subprocess.Popen(
            [*command, *options], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, name: value}
        )
    listening: set[tuple[str, str]] = set()
    try:
        while process.poll() is None:
            listening |= _listening(mark.encode())
            time.sleep(1)
    finally:
        process.kill()
    return process.returncode, (root / "log").read_text(), listening


def _listening(mark: bytes) -> set[tuple[str, str]]:
    """(address, title of its process) of each TCP socket that a process with ``mark`` in its environment listens on."""
    owners = {inode: title for pid in os.listdir("/proc") if pid.isdigit() for inode, title in _sockets(pid, mark)}
    tables = [Path(f"/proc/net/{kind}").read_text().splitlines()[1:] for kind in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return {(line[1].rpartition(":")[0], owners[line[9]]) for line in lines if line[3] == "0A" and line[9] in owners}


def _sockets(pid: str, mark: bytes) -> list[tuple[str, str]]:
    process = Path("/proc") / pid
    try:
        if mark not in (process / "environ").read_bytes():
            return []
        title = (process / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        links = [os.readlink(file) for file in (process / "fd").iterdir()]
    except OSError:  # it has ended meanwhile
        return []
    return [(link[8:-1], title) for link in links if link.startswith("socket:[")]


def _no_canary(folder: Path, logs: Path, printed: str) -> None:
    assert CANARY not in printed
    files = [file for place in (folder, logs) for file in place.rglob("*") if file.is_file() and not file.is_symlink()]
    assert [str(file) for file in files if CANARY.encode() in file.read_bytes()] == []
