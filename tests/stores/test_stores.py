"""Run directories in a bucket: whole or absent like on a disk, found from any node, with a network that fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from flaky_store import Flaky, flaky_proxy
from remote_servers import Bucket

from boom_ray.config import BoomError
from boom_ray.exit_codes import Infrastructure
from boom_ray.ledger import Key, Ledger
from boom_ray.runs import read_world, run_dir_of
from boom_ray.stores import files, mirrors, objects
from boom_ray.stores.disks import DiskFull, is_full
from boom_ray.stores.objects import ObjectSlot, Store

KEY = Key("members", "member-0", "0123456789abcdef")
PUBLISHED = Key("published", "r", "0123456789abcdef")
FILES = {"model.bin": b"w" * 5000, "sub/config.json": b"{}", "empty.txt": b""}


@pytest.fixture
def flaky(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    monkeypatch.setattr(files, "_FIRST_WAIT", 0.01)
    with flaky_proxy(bucket) as proxy:
        yield proxy


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go to a node: another disk, and nothing in memory of what was seen before."""

    def go(name: str) -> None:
        monkeypatch.setenv("BOOM_RAY_MIRRORS", str(tmp_path / name))
        mirrors._mirror.cache_clear()

    go("one")
    return go


def _make(ledger: Ledger, key: Key = KEY, files: dict[str, bytes] = FILES) -> None:
    with ledger.stage(key, inputs={"base": "b"}) as stage:
        for name, content in files.items():
            (stage.path / name).parent.mkdir(exist_ok=True)
            (stage.path / name).write_bytes(content)
        stage.meta["steps"] = 3


def _objects(bucket: Bucket, folder: str = "run/") -> dict[str, bytes]:
    listed = bucket.client.list_objects_v2(Bucket="bucket", Prefix=folder).get("Contents", ())
    bodies = {o["Key"]: bucket.client.get_object(Bucket="bucket", Key=o["Key"])["Body"].read() for o in listed}
    return {name.removeprefix(folder): body for name, body in bodies.items() if not name.endswith("/")}


def _here(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("s3://b/run", "s3://b/run"),
        ("gs://b/a//run/", "gs://b/a/run"),
        (Path("s3://b/run?region=eu-west-1"), "s3://b/run?region=eu-west-1"),
        ("s3://b/läufe/ein lauf", "s3://b/läufe/ein lauf"),
    ],
)
def test_an_address_has_one_mirror_that_tells_it_on_any_node(given, address):
    place = mirrors.place(given)
    found = mirrors.locate(place / "members" / "x")
    assert found is not None
    assert (found[0].store.address, found[0].root, found[1]) == (address, place, "members/x")
    assert Ledger(str(Ledger(given).root)).store is Ledger(given).store
    assert mirrors.locate(Path("/a/s3:/b")) is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("https://host/run", "only s3://, gs:// and paths"),
        ("s3://bucket", "give a bucket and a folder"),
        ("s3://bucket/../run", "give a bucket and a folder"),
        ("s3://key:secret@bucket/run", "must hold no credentials"),
        ("s3://bucket/" + "x" * 250, "too long"),
    ],
)
def test_an_address_that_cannot_hold_a_run_is_refused_without_asking(given, told):
    with pytest.raises(BoomError, match=told) as caught:
        run_dir_of("r", given)
    assert "secret" not in str(caught.value)


def test_home_may_be_an_address(monkeypatch, bucket, node):
    monkeypatch.setenv("BOOM_RAY_HOME", bucket.uri("runs"))
    Ledger.open(run_dir_of("quick", None), "quick")
    assert list(_objects(bucket, "runs/")) == ["quick/run.json"]


def test_a_run_in_a_bucket_holds_the_files_of_one_on_a_disk_and_is_found_from_another_node(bucket, node, tmp_path):
    there, here = Ledger.open(bucket.uri("run"), "r"), Ledger.open(tmp_path / "run", "r")
    for ledger in (there, here):
        for key in (KEY, PUBLISHED):
            assert not ledger.has(key)
            _make(ledger, key)
        ledger.write_text("placement/x.json", "{}\n")
    objects = _objects(bucket)
    assert objects.keys() == _here(here.root).keys() == _here(there.root).keys()
    times = ("manifest.json", "boom_manifest.json", "_SUCCESS", "run.json")
    assert {n: b for n, b in objects.items() if not n.endswith(times)} == {
        n: b for n, b in _here(here.root).items() if not n.endswith(times)
    }
    node("two")
    again = Ledger.open(bucket.uri("run"), "r")
    assert _here(again.root).keys() == {"run.json", "placement/x.json"}
    assert again.manifest(KEY)["meta"] == {"steps": 3}
    assert [path.name for path, _ in again.manifests("published")] == [PUBLISHED.name]
    again.verify(KEY)
    assert _here(again.path(PUBLISHED)) == {
        n.removeprefix(f"published/{PUBLISHED.name}/"): b for n, b in objects.items() if n.startswith("published/")
    }
    assert str(again) == "s3://bucket/run"
    with pytest.raises(BoomError, match="belongs to recipe 'r'"):
        Ledger.open(bucket.uri("run"), "other")


def test_a_model_in_a_run_is_brought_by_its_address(bucket, node):
    _make(Ledger.open(bucket.uri("run"), "r"), PUBLISHED)
    node("two")
    place = mirrors.opened(bucket.uri(f"run/published/{PUBLISHED.name}"))
    assert (place / "model.bin").read_bytes() == FILES["model.bin"]
    assert (place.parent.parent / "run.json").is_file()


def test_what_is_no_run_is_not_brought(bucket, node):
    bucket.put("data/rows.jsonl", b"x" * 100)
    with pytest.raises(BoomError, match="is not a run directory"):
        Ledger.open(bucket.uri("data"), "r")
    with pytest.raises(BoomError, match="s3://bucket/nothing is not the directory of a run"):
        read_world(mirrors.opened(bucket.uri("nothing")))


def test_the_marker_is_uploaded_last(flaky, node):
    ledger = Ledger.open(flaky.uri("run"), "r")
    for key in (KEY, PUBLISHED):
        flaky.asked.clear()
        _make(ledger, key)
        folder = f"run/{key.kind}/{key.name}/"
        written = [name.removeprefix(folder) for name in flaky.wrote() if name.startswith(folder)]
        assert written[-1] == key.marker
        assert set(written) == {
            *FILES, *({"manifest.json"} if key is KEY else {"boom_manifest.json", "_SUCCESS"}),
        }  # fmt: skip


def test_an_upload_that_ends_at_any_change_leaves_no_artifact_and_the_next_run_makes_it(bucket, flaky, node):
    ledger = Ledger.open(flaky.uri("run"), "r")
    flaky.asked.clear()
    _make(ledger, Key("members", "first", "f" * 16))
    changes = [number for number, (method, _) in enumerate(flaky.asked) if method in ("PUT", "POST", "DELETE")]
    whole = 0
    for last in changes:
        key = Key("members", f"m{last}", f"{last:016x}")
        start = len(flaky.asked)
        flaky.fault = lambda number, method, name, end=start + last: 403 if number >= end else None
        with suppress(Infrastructure):
            _make(ledger, key)
        flaky.fault = lambda number, method, name: None
        node(f"node-{last}")
        ledger = Ledger.open(flaky.uri("run"), "r")
        whole += ledger.has(key)
        ledger.sweep()
        left = {name for name in Store(bucket.uri("run")).sizes("members") if ".tmp-" in name or key.name in name}
        assert bool(left) == ledger.has(key)
        if not ledger.has(key):
            _make(ledger, key)
        ledger.verify(key)
    assert 0 < whole < len(changes) // 2


@pytest.mark.parametrize("missing", ["bucket", "rights"])
def test_a_mistake_in_the_address_is_the_users_and_told_at_once(flaky, node, missing):
    flaky.fault = lambda number, method, name: 403 if missing == "rights" else None
    with pytest.raises(BoomError, match="Check the name") as caught:
        run_dir_of("r", flaky.uri("run", "no-such-bucket" if missing == "bucket" else "bucket"))
    assert type(caught.value) is BoomError
    assert len(flaky.asked) <= 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_object_is_named_and_never_used(bucket, node, damage):
    _make(Ledger.open(bucket.uri("run"), "r"))
    name = f"run/members/{KEY.name}/model.bin"
    if damage == "delete":
        bucket.client.delete_object(Bucket="bucket", Key=name)
    else:
        bucket.put(name, b"v" + FILES["model.bin"][1:] if damage == "flip" else b"w")
    node("two")
    ledger = Ledger.open(bucket.uri("run"), "r")
    with pytest.raises(BoomError, match=f"{KEY.name}/model.bin"):
        ledger.path(KEY)
    assert not (ledger.root / "members" / KEY.name / "manifest.json").exists()
    bucket.put(name, FILES["model.bin"])
    ledger.verify(KEY)


def test_two_writers_of_one_artifact_leave_one(bucket, node):
    ledger = Ledger.open(bucket.uri("run"), "r")
    with ledger.stage(KEY) as stage:
        (stage.path / "model.bin").write_text("slow")
        _make(ledger)
    ledger.verify(KEY)
    assert _objects(bucket)[f"members/{KEY.name}/model.bin"] == FILES["model.bin"]
    assert not [name for name in _objects(bucket) if ".tmp-" in name]


def test_small_files_and_pieces_are_seen_from_other_nodes_and_what_is_dropped_is_gone(bucket, node, tmp_path):
    one = Ledger.open(bucket.uri("run"), "r")
    one.write_text("failures/m.json", "1")
    piece = one.scratch("corpus", "x") / "part-0"
    piece.mkdir()
    (piece / "rows.arrow").write_bytes(b"rows")
    (piece / ".tmp-half").write_bytes(b"half")
    mirrors.send(piece)
    node("two")
    two = Ledger.open(bucket.uri("run"), "r")
    assert (two.root / "failures/m.json").read_text() == "1"
    assert _here(two.scratch("corpus", "x")) == {"part-0/rows.arrow": b"rows"}
    assert two.children("scratch/corpus") == {"x"}
    two.drop("failures/m.json")
    two.drop("scratch/corpus/x")
    assert _objects(bucket).keys() == {"run.json"}
    node("one")
    assert not (Ledger.open(bucket.uri("run"), "r").root / "failures/m.json").exists()


def test_a_name_that_leaves_the_run_directory_is_refused(bucket, node, tmp_path):
    ledger = Ledger.open(bucket.uri("run"), "r")
    _make(ledger)
    manifest = json.loads(_objects(bucket)[f"members/{KEY.name}/manifest.json"])
    evil = {"sha256": hashlib.sha256(b"evil").hexdigest(), "bytes": 4}
    manifest["files"]["../../../../evil"] = evil
    bucket.put(f"run/members/{KEY.name}/manifest.json", json.dumps(manifest).encode())
    node("two")
    with pytest.raises(BoomError, match="leaves the run directory"):
        Ledger.open(bucket.uri("run"), "r").path(KEY)
    assert not list(tmp_path.rglob("evil"))


def test_a_claim_in_a_bucket_has_one_winner(bucket, monkeypatch):
    slot = ObjectSlot(Store(bucket.uri("run")), "lease.json")
    other = ObjectSlot(Store(bucket.uri("run")), "lease.json")
    monkeypatch.setattr(objects.time, "sleep", lambda seconds: None)
    assert slot.read() is None
    assert slot.create("mine")
    assert not other.create("theirs")
    assert not other.take("theirs")
    slot.replace("mine still")
    assert other.read() == "mine still"
    assert other.take("mine still")
    monkeypatch.setattr(objects.time, "sleep", lambda seconds: other.replace("faster"))
    assert not slot.create("mine")


_FULL = """
import resource, sys
from boom_ray.config import BoomError
from boom_ray.stores.disks import DiskFull
from boom_ray.ledger import Key, Ledger
ledger = Ledger.open(sys.argv[1], "r")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with ledger.stage(Key("members", "new", "0" * 16)) as stage:
        (stage.path / "a.bin").write_bytes(b"a" * 1000)
        (stage.path / "b.bin").write_bytes(b"b" * 3000)
        stage.meta["long"] = "x" * 4000
    ledger.write_text("report/x.html", "x" * 6000)
except DiskFull as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.parametrize("limit", [0, 999, 1000, 2999, 3000, 4500, 5999])
def test_a_write_that_does_not_fit_is_told_with_path_and_bytes_and_leaves_the_old_state(tmp_path, limit):
    ledger = Ledger.open(tmp_path / "run", "r")
    _make(ledger)
    before = _here(ledger.root)
    command = [sys.executable, "-c", _FULL, str(tmp_path / "run"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert str(tmp_path / "run") in done.stdout
    assert "the disk is full after" in done.stdout
    assert "bytes are free" in done.stdout
    after = _here(ledger.root)
    new = {name: content for name, content in after.items() if name not in before}
    assert {name: after[name] for name in before} == before
    assert not [name for name in new if ".tmp-" in name or name.startswith("report")]
    assert ledger.has(Key("members", "new", "0" * 16)) == (limit > 4200)


@pytest.mark.parametrize("name", ["ein lauf", "ラン", "läufe/ü" + "x" * 200, "a'b\"c;d", "s3%3A"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_run_directory_may_be_called_anything_and_be_a_link(tmp_path, name, linked):
    place = tmp_path / name
    if linked:
        place.mkdir(parents=True)
        (tmp_path / "link").symlink_to(place)
    ledger = Ledger.open(tmp_path / "link" if linked else place, "r")
    for key in (KEY, PUBLISHED):
        _make(ledger, key)
        Ledger(place.resolve()).verify(key)
    assert ledger.store is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a disk that nobody may write to")
def test_a_disk_that_may_not_be_written_to_is_told_and_can_be_read(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        ledger = Ledger.open(tmp_path / "run", "r")
        _make(ledger)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        ledger.verify(KEY)
        for write in (
            lambda: _make(ledger, PUBLISHED),
            lambda: ledger.write_text("report/x.html", "x"),
            lambda: Ledger.open(tmp_path / "other", "r"),
        ):
            with pytest.raises(BoomError, match=f"{tmp_path}.* cannot be written to: .*Read-only") as caught:
                write()
            assert not isinstance(caught.value, Infrastructure)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_is_known_in_the_words_of_every_library():
    caused = RuntimeError("worker failed")
    caused.__cause__ = OSError(28, "No space left on device")
    told = (
        "I/O error: Os { code: 28, kind: StorageFull }",
        "4096 requested and 512 written",
        "[Errno 122] Disk quota exceeded",
    )
    assert all(is_full(error) for error in (caused, *map(Exception, told)))
    assert not is_full(OSError(5, "Input/output error"))
    assert issubclass(DiskFull, Infrastructure)
