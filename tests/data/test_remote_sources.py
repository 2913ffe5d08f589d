"""Sources in buckets and on hubs: rows as from the disk, digests that follow the content, errors that say why."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from remote_servers import COMMIT

from boom_ray.config import BoomError
from boom_ray.config.corpus import FilesSource
from boom_ray.data.decontaminate import write_evaluation
from boom_ray.data.parts import Unit, read_part, write_part
from boom_ray.data.remote import offline_identity
from boom_ray.data.sources import WHOLE, BadRow, file_digests, read_rows, resolve, spans
from boom_ray.stores import files
from boom_ray.stores.files import may_pass, retried, shown, split

ROWS = [{"query": f"question {n}", "pos": [f"answer {n}"]} for n in range(500)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def _parquet(rows=ROWS, group=100):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=group)
    return sink.getvalue()


def _rows(file):
    return [row for span in spans(file, 4000) for _, row in read_rows(file, span)]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(files, "_FIRST_WAIT", 0.01)


def test_rows_of_a_bucket_are_those_of_the_disk(bucket):
    bucket.put("set/a.jsonl", LINES)
    bucket.put("set/b.jsonl.gz", gzip.compress(LINES))
    bucket.put("set/c d.parquet", _parquet())
    bucket.put("set/deep/e.jsonl", LINES)
    bucket.put("set/notes.txt", b"no rows")
    files = resolve(FilesSource(path=bucket.uri("set")))
    assert [f.name for f in files] == ["a.jsonl", "b.jsonl.gz", "c d.parquet"]
    assert [len(spans(f, 4000)) > 1 for f in files] == [True, False, True]
    for file in files:
        assert _rows(pickle.loads(pickle.dumps(file))) == ROWS
    globbed = resolve(FilesSource(path=bucket.uri("set/**/*.jsonl*")))
    assert [f.name for f in globbed] == ["a.jsonl", "b.jsonl.gz", "e.jsonl"]
    assert [f.name for f in resolve(FilesSource(path=bucket.uri("set/?.jsonl")))] == ["a.jsonl"]
    assert str(files[0]) == "s3://bucket/set/a.jsonl"


def test_the_digest_of_a_bucket_follows_the_object(bucket):
    bucket.put("a.jsonl", LINES)
    source = FilesSource(path=bucket.uri("a.jsonl"))
    first = file_digests(source)
    assert file_digests(source) == first
    bucket.put("a.jsonl", LINES + LINES)
    assert file_digests(source)[0]["digest"] != first[0]["digest"]


def test_what_will_not_pass_stops_at_once(bucket):
    bucket.put("a.jsonl", LINES)
    bucket.put("a.parquet", _parquet())
    started = time.monotonic()
    with pytest.raises(BoomError, match=r"s3://nowhere/a cannot be listed: .*NO_SUCH_BUCKET.*Check the name"):
        resolve(FilesSource(path=bucket.uri("a", "nowhere")))
    with pytest.raises(BoomError, match=r"s3://bucket/none cannot be listed: .*Check the name and the path"):
        resolve(FilesSource(path=bucket.uri("none")))
    with pytest.raises(BoomError, match=r"no file matches s3://bucket/\*.arrow: check the pattern"):
        resolve(FilesSource(path=bucket.uri("*.arrow")))
    bucket.put("b.csv", b"a,b")
    with pytest.raises(BoomError, match="of no known kind"):
        resolve(FilesSource(path=bucket.uri("b.csv")))
    assert time.monotonic() - started < 5
    for name in ("a.jsonl", "a.parquet"):
        (file,) = resolve(FilesSource(path=bucket.uri(name)))
        bucket.client.delete_object(Bucket="bucket", Key=name)
        with pytest.raises(BoomError, match=rf"s3://bucket/{name}, line 1: cannot be read"):
            list(read_rows(file))


def test_a_bucket_out_of_reach_is_named_after_bounded_attempts(monkeypatch, quick):
    monkeypatch.setattr(files, "ATTEMPTS", 1)  # the store's own client tries three times in some seconds
    uri = "s3://key:secret@bucket/a?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    with pytest.raises(BoomError, match=r"s3://bucket/a cannot be listed: .*NETWORK.*check the network") as caught:
        resolve(FilesSource(path=uri))
    assert "secret" not in str(caught.value)


def test_cut_gzip_in_a_bucket_keeps_what_came_before(bucket):
    whole = gzip.compress(LINES)
    bucket.put("a.jsonl.gz", whole[:-20])
    (file,) = resolve(FilesSource(path=bucket.uri("a.jsonl.gz")))
    rows = [row for _, row in read_rows(file)]
    assert rows[:-1] == ROWS[: len(rows) - 1]
    assert isinstance(rows[-1], BadRow)


def test_bad_rows_of_a_bucket_are_quarantined_with_file_and_line(bucket, tmp_path):
    bucket.put("a.jsonl", LINES + b'{"query": "no positive"}\n' + LINES.replace(b"question", b"other"))
    source = FilesSource(path=bucket.uri("a.jsonl"), task_type="retrieval")
    (file,) = resolve(source)
    write_evaluation([], None, tmp_path)
    write_part(Unit(0, 0, file, WHOLE, source), tmp_path)
    part = read_part(tmp_path, 0)
    (bad,) = map(json.loads, part.quarantine.read_text().splitlines())
    assert (bad["file"], bad["line"]) == ("s3://bucket/a.jsonl", 501)
    assert bad["reason"].startswith("missing field 'pos'")
    assert part.rows == 1000


CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: nli, path: data/nli-*}
- config_name: other
  data_files: "other/*.jsonl"
---
# A card
"""


def _fill(hub):
    half = len(ROWS) // 2
    hub.files |= {
        "README.md": CARD.encode(),
        "data/train-00000-of-00002.parquet": _parquet(ROWS[:half]),
        "data/train-00001-of-00002.parquet": _parquet(ROWS[half:]),
        "data/nli-00000-of-00001.parquet": _parquet(ROWS[:3]),
        "other/a.jsonl": LINES,
    }


def test_a_split_of_a_hubs_dataset(hub):
    _fill(hub)
    files = resolve(FilesSource(hub="owner/name"))
    assert [f.name for f in files] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert str(files[0]) == f"hf://datasets/owner/name@{COMMIT}/data/train-00000-of-00002.parquet"
    assert [row for file in files for row in _rows(file)] == ROWS
    (nli,) = resolve(FilesSource(hub="owner/name", revision="v1", split="nli"))
    assert _rows(nli) == ROWS[:3]
    (other,) = resolve(FilesSource(hub="owner/name", subset="other"))
    assert _rows(other) == ROWS


def test_paths_of_a_hub(hub):
    _fill(hub)
    (file,) = resolve(FilesSource(path="hf://datasets/owner/name@v1/other/a.jsonl"))
    assert _rows(file) == ROWS
    names = [f.name for f in resolve(FilesSource(path="hf://datasets/owner/name/data/*-00000-*.parquet"))]
    assert names == ["nli-00000-of-00001.parquet", "train-00000-of-00002.parquet"]
    assert len(resolve(FilesSource(path="hf://datasets/owner/name/data"))) == 3


def test_a_hub_that_has_not_what_is_asked_for_says_what_it_has(hub):
    _fill(hub)
    for source, message in [
        (FilesSource(hub="owner/name", split="nil"), r"no split 'nil': did you mean 'nli'\?"),
        (FilesSource(hub="owner/name", split="validation"), "no split 'validation': there are train, nli"),
        (FilesSource(hub="owner/name", subset="othr"), r"no subset 'othr': did you mean 'other'\?"),
        (FilesSource(hub="owner/name", revision="v9"), r"name@v9 cannot be listed: .*Check the name"),
        (FilesSource(hub="owner/none"), r"owner/none cannot be listed: .*Check the name"),
        (FilesSource(path="hf://datasets/owner"), "no address of the Hugging Face hub"),
    ]:
        with pytest.raises(BoomError, match=message):
            resolve(source)
    hub.files = {"script.py": b"", "README.md": b"no front matter"}
    with pytest.raises(BoomError, match="set 'revision: refs/convert/parquet'"):
        resolve(FilesSource(hub="owner/name"))


def test_without_a_card_names_of_folders_and_files_decide(hub):
    hub.files = dict.fromkeys(("en/train.jsonl", "en/test.jsonl", "de/train-0.jsonl", "de/dev/0.jsonl"), LINES)
    assert [str(f)[-14:] for f in resolve(FilesSource(hub="owner/name", subset="en"))] == ["en/train.jsonl"]
    assert len(resolve(FilesSource(hub="owner/name"))) == 2
    assert len(resolve(FilesSource(hub="owner/name", subset="de", split="dev"))) == 1
    with pytest.raises(BoomError, match="no split 'test': there are train, dev"):
        resolve(FilesSource(hub="owner/name", subset="de", split="test"))
    with pytest.raises(BoomError, match="no subset 'fr'"):
        resolve(FilesSource(hub="owner/name", subset="fr"))
    hub.files = {"a.jsonl": LINES, "b.jsonl": LINES}
    assert len(resolve(FilesSource(hub="owner/name"))) == 2


def test_a_busy_hub_and_a_cut_answer_are_asked_again(hub, quick):
    _fill(hub)
    hub.failing = 2
    (file,) = resolve(FilesSource(hub="owner/name", subset="other"))
    hub.cut = True
    assert _rows(file) == ROWS
    assert not hub.cut
    hub.failing = 3
    with pytest.raises(BoomError, match=r"cannot be listed: .*3 attempts failed"):
        resolve(FilesSource(hub="owner/name"))


def test_a_hubs_source_is_known_without_asking(hub):
    source = FilesSource(hub="owner/name", revision="v1", subset="other")
    assert file_digests(source)[0]["digest"] == offline_identity(source) == "owner/name@v1 other train"
    path = "hf://datasets/owner/name@v1/*.jsonl"
    assert file_digests(FilesSource(path=path))[0]["digest"] == path
    assert not hub.asked


def test_a_connection_that_breaks_goes_on_where_it_broke(bucket, monkeypatch, quick):
    bucket.put("a.jsonl", LINES)
    (file,) = resolve(FilesSource(path=bucket.uri("a.jsonl")))
    opened, broken = files._open_store, []

    class Flaky(io.BytesIO):
        def read(self, size=-1):
            if self.tell() and len(broken) < 2:
                broken.append(self.tell())
                raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")
            return super().read(min(size, 5000))

    monkeypatch.setattr(files, "_open_store", lambda uri: Flaky(opened(uri).read()))
    assert [row for _, row in read_rows(file)] == ROWS
    assert broken == [5000, 5000]


def test_attempts_are_bounded_and_only_for_errors_that_pass(quick):
    seen = []

    def action(error):
        seen.append(error)
        raise error

    for error, attempts in [(ConnectionResetError("reset"), 3), (PermissionError("no"), 1), (ValueError("odd"), 1)]:
        seen.clear()
        with pytest.raises(BoomError, match="s3://b/k cannot be read"):
            retried(lambda error=error: action(error), "s3://b/k", "read")
        assert len(seen) == attempts
    assert not may_pass(OSError("AWS Error ACCESS_DENIED during GetObject operation"))
    assert may_pass(OSError("AWS Error SLOW_DOWN during GetObject operation"))


def test_addresses():
    assert split("s3://b/a?.jsonl?region=x") == ("s3", "b", "a?.jsonl", "?region=x")
    assert split("gs://anonymous@b/a/*.parquet") == ("gs", "anonymous@b", "a/*.parquet", "")
    assert shown("s3://key:secret@b/a.jsonl?endpoint_override=h:1&scheme=http") == "s3://b/a.jsonl"
    with pytest.raises(BoomError, match="no address"):
        split("s3:/b")
