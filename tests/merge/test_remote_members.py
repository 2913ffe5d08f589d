"""Members in a bucket and on a hub: staged once, whole or not at all, and only after a look at their size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from remote_servers import COMMIT, Bucket, Hub

from boom_ray.config import BoomError
from boom_ray.merge.remote import local_directory, staging_home
from boom_ray.stores import files

FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 40000,  # some ranges long
    "1_Pooling/config.json": b"{}",
}
UNWANTED = {"pytorch_model.bin": b"pickle", "onnx/model.json": b"{}"}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("BOOM_RAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(files, "_FIRST_WAIT", 0.01)
    return tmp_path / "home"


def _read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(1 << 30) + 1000))


def test_a_member_in_a_bucket_is_staged_once(bucket: Bucket) -> None:
    for name, body in {**FILES, **UNWANTED}.items():
        bucket.put(f"models/m 1/{name}", body)
    folder = local_directory(bucket.uri("models/m 1"))
    assert _read(folder) == FILES
    assert folder.parent == staging_home()
    assert local_directory(bucket.uri("models/m 1/")) == folder
    bucket.put("models/m 1/config.json", b'{"changed": 1}')
    assert _read(local_directory(bucket.uri("models/m 1")))["config.json"] == b'{"changed": 1}'


def test_a_member_that_breaks_off_leaves_nothing(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in FILES.items():
        bucket.put(f"m/{name}", body)
    opened = files._open_store

    def gone(uri: str) -> object:
        bucket.client.delete_object(Bucket="bucket", Key="m/model.safetensors")
        return opened(uri)

    monkeypatch.setattr(files, "_open_store", gone)
    with pytest.raises(BoomError, match=r"s3://bucket/m/model.safetensors cannot be read"):
        local_directory(bucket.uri("m"))
    assert not list(staging_home().iterdir())


def test_a_member_too_large_for_the_disk_is_refused_before_a_byte_comes(
    bucket: Bucket, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, body in FILES.items():
        bucket.put(f"m/{name}", body)
    hub.files = dict(FILES)
    _no_room(monkeypatch, tmp_path)
    with pytest.raises(BoomError, match=r"s3://bucket/m has 0.01 GB and .* has 1.07 GB free, .* Make room"):
        local_directory(bucket.uri("m"))
    with pytest.raises(BoomError, match=r"hf://owner/name has 0.01 GB and .*free"):
        local_directory("hf://owner/name")
    assert not any("resolve" in asked for asked in hub.asked)
    assert not list(staging_home().iterdir())


def test_a_member_of_a_hub(hub: Hub) -> None:
    hub.files = {**FILES, **UNWANTED}
    folder = local_directory("hf://owner/name@v1")
    assert _read(folder) == FILES
    assert folder.name == COMMIT
    hub.asked.clear()
    assert local_directory("hf://owner/name") == folder
    assert not any("resolve" in asked for asked in hub.asked if asked.startswith("GET"))


def test_a_member_that_is_not_there_is_named_at_once(bucket: Bucket, hub: Hub) -> None:
    bucket.put("m/readme.bin", b"")
    for model, message in [
        (bucket.uri("m"), "s3://bucket/m holds no model files"),
        (bucket.uri("m", "nowhere"), "s3://nowhere/m cannot be listed: .*NO_SUCH_BUCKET"),
        ("hf://owner/none", "hf://owner/none cannot be listed"),
        ("hf://owner/name@v9", "hf://owner/name@v9 cannot be listed"),
        ("hf://owner/name", "hf://owner/name holds no file"),
    ]:
        with pytest.raises(BoomError, match=message):
            local_directory(model)
