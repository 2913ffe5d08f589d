"""The ledger: an artifact is whole or absent, named by what made it, and its checksums tell damage."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.config import BoomError
from boom_ray.ledger import Key, Ledger, canonical_json, identity

KEY = Key("members", "member-0", "0123456789abcdef")
PUBLISHED = Key("published", "r", "0123456789abcdef")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger.open(tmp_path / "run", "r")


def _files(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def _make(ledger: Ledger, key: Key, text: str = "weights") -> None:
    with ledger.stage(key, inputs={"base": "b"}) as stage:
        (stage.path / "sub").mkdir()
        (stage.path / "model.bin").write_text(text)
        (stage.path / "sub" / "config.json").write_text("{}")
        stage.meta["steps"] = 3


def test_an_artifact_appears_whole_with_its_checksums(ledger):
    assert not ledger.has(KEY)
    _make(ledger, KEY)
    assert ledger.has(KEY)
    manifest = ledger.manifest(KEY)
    assert manifest["files"] == {
        "model.bin": {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7},
        "sub/config.json": {"sha256": hashlib.sha256(b"{}").hexdigest(), "bytes": 2},
    }
    assert (manifest["kind"], manifest["label"], manifest["identity"]) == (KEY.kind, KEY.label, KEY.identity)
    assert (manifest["inputs"], manifest["meta"], manifest["bytes"]) == ({"base": "b"}, {"steps": 3}, 9)
    assert manifest["started"] <= manifest["finished"]
    ledger.verify(KEY)
    assert _files(ledger.root) == {
        "run.json",
        *(f"members/{KEY.name}/{f}" for f in ("model.bin", "sub/config.json", "manifest.json")),
    }


def _fail(ledger: Ledger, error: type[BaseException]) -> None:
    with ledger.stage(KEY) as stage:
        (stage.path / "model.bin").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_the_block_leaves_nothing(ledger, error):
    with pytest.raises(error):
        _fail(ledger, error)
    assert not ledger.has(KEY)
    assert _files(ledger.root) == {"run.json"}
    assert list((ledger.root / KEY.kind).iterdir()) == []


def test_a_manifest_that_json_cannot_hold_leaves_nothing(ledger):
    with pytest.raises(TypeError), ledger.stage(KEY) as stage:
        stage.meta["x"] = object()
    assert not ledger.has(KEY)
    assert list((ledger.root / KEY.kind).iterdir()) == []


def test_kill_inside_a_stage_leaves_only_a_sibling_that_is_never_read(ledger):
    script = (
        "import sys, time\n"
        "from boom_ray.ledger import Key, Ledger\n"
        f"with Ledger({str(ledger.root)!r}).stage(Key{(KEY.kind, KEY.label, KEY.identity)}) as stage:\n"
        "    (stage.path / 'model.bin').write_text('half')\n"
        "    print('inside', flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        os.kill(process.pid, signal.SIGKILL)
    left = [p.name for p in (ledger.root / KEY.kind).iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".tmp-")
    assert not ledger.has(KEY)
    with pytest.raises(BoomError, match="has not been made yet"):
        ledger.manifest(KEY)
    _make(ledger, KEY)  # the next run is not disturbed by what lies there
    ledger.verify(KEY)
    ledger.sweep()
    assert [p.name for p in (ledger.root / KEY.kind).iterdir()] == [KEY.name]
    ledger.verify(KEY)


def test_a_kill_while_the_run_directory_is_made_does_not_lock_it(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    (root / ".tmp-run.json-0a1b2c3d").write_text("{")  # what write_text leaves when it is killed before its rename
    ledger = Ledger.open(root, "r")
    ledger.sweep()
    assert _files(root) == {"run.json"}


@pytest.mark.parametrize("damage", ["change", "truncate", "delete"])
@pytest.mark.parametrize("name", ["model.bin", "sub/config.json"])
def test_verify_names_the_damaged_file(ledger, name, damage):
    _make(ledger, KEY)
    file = ledger.path(KEY) / name
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "truncate" else file.read_bytes()[:-1] + b"!")
    with pytest.raises(BoomError) as caught:
        ledger.verify(KEY)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("key", [KEY, PUBLISHED])
def test_verify_names_a_damaged_manifest(ledger, key):
    _make(ledger, key)
    manifest = ledger.path(key) / key.manifest
    manifest.write_text(manifest.read_text()[:-9])
    with pytest.raises(BoomError) as caught:
        ledger.verify(key)
    assert str(manifest) in str(caught.value)


def test_only_a_published_artifact_carries_success(ledger):
    for kind in ("corpus", "tokens", "bags", "base", "members", "grams", "search", "merges", "scores"):
        _make(ledger, Key(kind, "x", "0" * 16))
    _make(ledger, PUBLISHED)
    directory = ledger.path(PUBLISHED)
    assert _files(directory) == {"model.bin", "sub/config.json", "boom_manifest.json", "_SUCCESS"}
    assert [p.parent for p in ledger.root.rglob("_SUCCESS")] == [directory]
    assert [p.parent for p in ledger.root.rglob("boom_manifest.json")] == [directory]
    digest = hashlib.sha256((directory / "boom_manifest.json").read_bytes()).hexdigest()
    assert (directory / "_SUCCESS").read_text().strip() == digest
    times = {f: os.stat(directory / f).st_mtime_ns for f in _files(directory)}
    assert max(times, key=lambda f: times[f]) == "_SUCCESS"
    ledger.verify(PUBLISHED)


def test_without_its_marker_a_published_directory_does_not_exist(ledger):
    _make(ledger, PUBLISHED, "old")
    (ledger.path(PUBLISHED) / "_SUCCESS").unlink()
    assert not ledger.has(PUBLISHED)
    _make(ledger, PUBLISHED, "new")
    assert (ledger.path(PUBLISHED) / "model.bin").read_text() == "new"


def test_a_second_writer_is_harmless(ledger):
    with ledger.stage(KEY) as slow:
        (slow.path / "model.bin").write_text("slow")
        with ledger.stage(KEY) as quick:
            (quick.path / "model.bin").write_text("quick")
        assert ledger.has(KEY)
    assert (ledger.path(KEY) / "model.bin").read_text() == "quick"
    assert [p.name for p in (ledger.root / KEY.kind).iterdir()] == [KEY.name]
    ledger.verify(KEY)


def test_writers_that_commit_at_the_same_moment_are_harmless(ledger):
    """Four commit at once, twenty times over: exactly one artifact stands, whole, and nobody fails."""
    for number in range(20):
        key = Key("members", "member-0", f"{number:016x}")
        ready, errors = threading.Barrier(4), []

        def write(writer, key=key, ready=ready, errors=errors):
            try:
                with ledger.stage(key) as stage:
                    (stage.path / "model.bin").write_text(f"writer {writer}")
                    ready.wait()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        ledger.verify(key)
    assert not list((ledger.root / "members").glob(".tmp-*"))


def test_a_run_directory_belongs_to_one_recipe(tmp_path):
    Ledger.open(tmp_path / "run", "mine")
    Ledger.open(tmp_path / "run", "mine")
    with pytest.raises(BoomError, match="belongs to recipe 'mine', not to 'other'"):
        Ledger.open(tmp_path / "run", "other")


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BoomError, match="is not a run directory"):
        Ledger.open(tmp_path, "r")
    assert _files(tmp_path) == {"thesis.txt"}
    with pytest.raises(BoomError, match="is not a run directory"):
        Ledger.open(tmp_path / "thesis.txt", "r")
    (tmp_path / "empty").mkdir()
    assert Ledger.open(tmp_path / "empty", "r").root.is_dir()


def test_write_text_replaces_whole_files_and_makes_folders(ledger):
    first = ledger.write_text("placement/a.json", "one")
    assert ledger.write_text("placement/a.json", "two") == first
    assert first.read_text() == "two"
    assert [p.name for p in first.parent.iterdir()] == ["a.json"]


def test_scratch_is_kept_by_sweep(ledger):
    (ledger.scratch("members") / "log.jsonl").write_text("{}")
    ledger.sweep()
    assert (ledger.scratch("members") / "log.jsonl").read_text() == "{}"


@given(json_values)
def test_an_identity_depends_on_the_value_alone(value):
    text = json.dumps(value)
    assert identity(json.loads(text)) == identity(value)
    assert json.loads(canonical_json(value)) == value
    assert len(identity(value)) == 16
    assert identity({"wrapped": value}) != identity(value)


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_an_identity_does_not_depend_on_the_order_of_keys(mapping):
    assert identity(dict(reversed(list(mapping.items())))) == identity(mapping)
