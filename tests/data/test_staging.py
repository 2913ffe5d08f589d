import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from boom_ray.config import BoomError
from boom_ray.data import staging
from boom_ray.data.staging import stage


@pytest.fixture
def original(tmp_path):
    folder = tmp_path / "run" / "tokens" / "name-1"
    (folder / "deep").mkdir(parents=True)
    for name in ("datasets.json", "tokens-00000.arrow", "deep/x.bin"):
        (folder / name).write_bytes(os.urandom(5000))
    return folder


def _files(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_without_a_home_nothing_is_copied(original):
    assert stage(original, None) == original


def test_a_copy_is_made_once_and_made_again_when_it_is_not_whole(original, tmp_path):
    home = tmp_path / "disk"
    copy = stage(original, home)
    assert _files(copy) == _files(original)
    stamp = (copy / "datasets.json").stat().st_mtime_ns
    inode = (copy / "datasets.json").stat().st_ino
    assert stage(original, home) == copy
    assert ((copy / "datasets.json").stat().st_mtime_ns, (copy / "datasets.json").stat().st_ino) == (stamp, inode)
    (copy / "tokens-00000.arrow").write_bytes(b"cut")
    assert _files(stage(original, home)) == _files(original)


def test_directories_of_one_name_do_not_meet(original, tmp_path):
    other = tmp_path / "other" / original.name
    other.mkdir(parents=True)
    (other / "datasets.json").write_text("[]")
    home = tmp_path / "disk"
    assert stage(original, home) != stage(other, home)


def _slow_copy(original, home, started):
    def never(source, target):
        started.set()
        time.sleep(60)

    staging.os.rename = never
    stage(original, home)


def _stage_into(original, home, queue):
    queue.put((str(stage(original, home)), os.getpid()))


def test_others_wait_and_a_killed_copier_leaves_nothing(original, tmp_path):
    home, context = tmp_path / "disk", multiprocessing.get_context("fork")
    started, queue = context.Event(), context.Queue()
    first = context.Process(target=_slow_copy, args=(original, home, started))
    first.start()
    assert started.wait(30)
    others = [context.Process(target=_stage_into, args=(original, home, queue)) for _ in range(3)]
    for process in others:
        process.start()
    time.sleep(0.3)
    assert queue.empty()  # they wait for the lock
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    found = {queue.get(timeout=30)[0] for _ in others}
    for process in others:
        process.join()
    assert len(found) == 1
    assert _files(Path(found.pop())) == _files(original)
    assert not list(home.glob(".*.tmp-*"))


def test_too_little_room_and_a_home_that_is_none_say_what_to_do(original, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(BoomError, match=r"resources.staging .*file/x: .*leave resources.staging out"):
        stage(original, tmp_path / "file" / "x")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(BoomError, match=r"takes 0.00 GB and resources.staging"):
        stage(original, tmp_path / "disk")
