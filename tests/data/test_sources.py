import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boom_ray.config import BoomError
from boom_ray.config.corpus import FilesSource
from boom_ray.data import lines as text_lines
from boom_ray.data.sources import BadRow, dataset_stem, file_digests, local_file, read_rows, resolve


def _source(path):
    return FilesSource(path=str(path))


def test_file_folder_and_glob_give_sorted_files(tmp_path):
    for name in ("b.jsonl", "a.jsonl.gz", "c.parquet", "README.md", ".hidden.jsonl"):
        (tmp_path / name).write_bytes(b"")
    assert [f.name for f in resolve(_source(tmp_path))] == ["a.jsonl.gz", "b.jsonl", "c.parquet"]
    assert [f.name for f in resolve(_source(tmp_path / "*.jsonl*"))] == ["a.jsonl.gz", "b.jsonl"]
    assert [f.name for f in resolve(_source(tmp_path / "b.jsonl"))] == ["b.jsonl"]
    assert [dataset_stem(f) for f in resolve(_source(tmp_path))] == ["a", "b", "c"]


def test_what_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(BoomError, match=r"missing.jsonl does not exist. Give a file"):
        resolve(_source(tmp_path / "missing.jsonl"))
    with pytest.raises(BoomError, match="holds no training file"):
        resolve(_source(tmp_path))
    with pytest.raises(BoomError, match="no file matches"):
        resolve(_source(tmp_path / "*.jsonl"))
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(BoomError, match="no known kind"):
        resolve(_source(tmp_path / "x.csv"))


def test_digests_follow_the_content(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    before = file_digests(_source(file))
    file.write_text("[]\n")
    after = file_digests(_source(file))
    assert before[0]["bytes"] == after[0]["bytes"] == 3
    assert before[0]["digest"] != after[0]["digest"]


def test_bad_lines_are_records_and_good_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 1 << 20)
    file = tmp_path / "a.jsonl"
    lines = [b'{"a": 1}', b"{oops", b"", b'{"a": "\xff"}', b'"' + b"x" * (3 << 20) + b'"', b"[" * 100000, b'{"a": 2}']
    file.write_bytes(b"\n".join(lines))
    rows = list(read_rows(local_file(file)))
    assert [line for line, _ in rows] == [1, 2, 4, 5, 6, 7]
    assert [row["a"] for _, row in rows if not isinstance(row, BadRow)] == [1, 2]
    reasons = [row.reason for _, row in rows if isinstance(row, BadRow)]
    assert reasons[0].startswith("bad JSON: Expecting property name")
    assert reasons[1] == "invalid UTF-8 at byte 7"
    assert reasons[2] == "the line is longer than 1 MiB"
    assert reasons[3].startswith("bad JSON")


def test_truncated_gzip_keeps_what_came_before(tmp_path):
    whole = gzip.compress(
        b"".join(json.dumps({"n": n, "text": str(hash(n)) * 9}).encode() + b"\n" for n in range(3000))
    )
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    rows = list(read_rows(local_file(tmp_path / "cut.jsonl.gz")))
    assert [row["n"] for _, row in rows[:-1]] == list(range(len(rows) - 1))
    assert len(rows) > 500
    assert rows[-1] == (len(rows), rows[-1][1])
    assert "cut or damaged" in rows[-1][1].reason
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain text")
    assert [line for line, row in read_rows(local_file(tmp_path / "not.jsonl.gz")) if "damaged" in row.reason] == [1]


def test_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ["a", "b"], "pos": [["x"], ["y", "z"]]}), file)
    assert list(read_rows(local_file(file))) == [
        (1, {"query": "a", "pos": ["x"]}),
        (2, {"query": "b", "pos": ["y", "z"]}),
    ]
    file.write_bytes(b"PAR1 no PAR1")
    ((line, bad),) = read_rows(local_file(file))
    assert line == 1
    assert "damaged" in bad.reason


def test_file_that_vanished(tmp_path):
    with pytest.raises(BoomError, match="cannot be read"):
        list(read_rows(local_file(tmp_path / "gone.jsonl")))
