"""A run that is killed with -9 goes on where it was: finished parts and token shards are not made again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from boom_ray.config.corpus import Corpus
from boom_ray.data import corpus as corpus_module
from boom_ray.data import reduce
from boom_ray.data.corpus import build_corpus, tokenise
from boom_ray.data.tokens import train_tokenizer

pytestmark = pytest.mark.slow
SPAN, SHARD = 20_000, 150
SCRIPT = f"""
import sys, time
from functools import partial
from pathlib import Path
import ray
from boom_ray.config.corpus import Corpus
from boom_ray.data import corpus, reduce, tokens
corpus.SPAN_BYTES, reduce.SHARD_ROWS = {SPAN}, {SHARD}
write_part, tokenise_shard = corpus.write_part, tokens.tokenise_shard
def slow_part(*args, **kwargs):
    time.sleep(0.2)
    return write_part(*args, **kwargs)
def slow_shard(*args, **kwargs):
    time.sleep(0.2)
    return tokenise_shard(*args, **kwargs)
corpus.write_part, tokens.tokenise_shard = slow_part, slow_shard
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
root, kind = Path(sys.argv[1]), sys.argv[2]
(root / "killed").mkdir(exist_ok=True)
if kind == "corpus":
    settings = {{"datasets": [{{"path": str(root / "data"), "task_type": "retrieval"}}], "max_bad_fraction": 0.5}}
    corpus.build_corpus(Corpus.model_validate(settings), 1, ["leak"], root / "killed" / kind, root / "scratch" / kind)
else:
    corpus.tokenise(root / "corpus", root / "tokenizer", 24, root / "killed" / kind, root / "scratch" / kind)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two files of about 300 kB: with a leak, a duplicate and a bad row here and there."""
    root = tmp_path_factory.mktemp("resume")
    (root / "data").mkdir()
    for name in ("a", "b"):
        with open(root / "data" / f"{name}.jsonl", "w", encoding="utf-8") as stream:
            for n in range(2000):
                row = {"query": f"query {name} {n - n % 50 % 2}", "pos": f"text {n // 2} " + "word " * 20}
                stream.write(
                    "{bad\n" if n % 97 == 0 else json.dumps(row | ({"pos": "Leak"} if n % 89 == 0 else {})) + "\n"
                )
    return root


@pytest.fixture(scope="module", autouse=True)
def _ray(root):
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(corpus_module, "SPAN_BYTES", SPAN)
    monkeypatch.setattr(reduce, "SHARD_ROWS", SHARD)


def _settings(root):
    source = {"path": str(root / "data"), "task_type": "retrieval"}
    return Corpus.model_validate({"datasets": [source], "max_bad_fraction": 0.5})


def _killed_in_the_middle(root, kind, pattern):
    """Start the work in a process group of its own, kill all of it after three pieces; ``{piece: its inodes}``."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-c", SCRIPT, str(root), kind]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    scratch, deadline = root / "scratch" / kind, time.monotonic() + 120
    while len(list(scratch.glob(pattern))) < 3:
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in scratch.glob(pattern)}


def _same(one, other):
    files = sorted(f.relative_to(one).as_posix() for f in one.rglob("*") if f.is_file())
    assert files == sorted(f.relative_to(other).as_posix() for f in other.rglob("*") if f.is_file())
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    return files


def test_a_killed_corpus_goes_on_and_is_the_same_to_the_byte(root, monkeypatch):
    counts = build_corpus(_settings(root), 1, ["leak"], root / "corpus")
    before = _killed_in_the_middle(root, "corpus", "part-??????/part.json")
    units = (root / "scratch" / "corpus" / "units.txt").read_text().count("\n") + 1
    assert 3 <= len(before) < units
    asked = []
    on_workers = corpus_module.on_workers
    monkeypatch.setattr(
        corpus_module, "on_workers", lambda work, items, files: asked.append(items) or on_workers(work, items, files)
    )
    again = build_corpus(_settings(root), 1, ["leak"], root / "again", root / "scratch" / "corpus")
    assert len(asked[0]) == units - len(before)  # finished parts are not read again
    found = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in before}
    assert found == before
    assert again == counts
    files = _same(root / "corpus", root / "again")
    assert sum(name.startswith("rows-") for name in files) > 5


def test_killed_tokens_go_on_and_are_the_same_to_the_byte(root):
    train_tokenizer(root / "corpus", 300, 24, root / "tokenizer")
    totals = tokenise(root / "corpus", root / "tokenizer", 24, root / "tokens")
    before = _killed_in_the_middle(root, "tokens", "tokens-?????.json")
    shards = len(list((root / "corpus").glob("rows-*")))
    assert 3 <= len(before) < shards
    half = root / "scratch" / "tokens" / "tokens-00001.arrow.tmp-12345678"
    half.write_bytes(b"half")
    inodes = {file.with_suffix(".arrow").name: file.with_suffix(".arrow").stat().st_ino for file in before}
    assert tokenise(root / "corpus", root / "tokenizer", 24, root / "more", root / "scratch" / "tokens") == totals
    assert {name: (root / "more" / name).stat().st_ino for name in inodes} == inodes
    _same(root / "tokens", root / "more")


def test_parts_of_a_file_that_has_changed_are_deleted(root):
    scratch = root / "scratch" / "changed"
    build_corpus(_settings(root), 1, ["leak"], root / "first", scratch)
    made = (scratch / "part-000000").stat().st_mtime_ns
    with open(root / "data" / "b.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"query": "new", "pos": "row"}\n')
    counts = build_corpus(_settings(root), 1, ["leak"], root / "second", scratch)
    assert counts["b"]["rows_in"] == 2001
    assert (scratch / "part-000000").stat().st_mtime_ns > made
