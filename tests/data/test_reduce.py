"""Parts and their reduction without Ray: exact for any corpus, whatever files its rows lie in."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_ray.config import FilesSource
from boom_ray.data import parts, reduce
from boom_ray.data.parts import Unit, part_path, write_part
from boom_ray.data.schema import fold_digest, row_id

TEXT = st.sampled_from(["a", "b", "c", "leak", " Leak "])
ROW = st.fixed_dictionaries(
    {"query": TEXT, "pos": TEXT, "neg": st.lists(TEXT, max_size=2), "dataset": st.sampled_from("xy")}
)
BAD = st.sampled_from([{"query": "a"}, {"query": "", "pos": "b"}, [], "{"])
FILES = st.lists(st.lists(ROW | BAD, max_size=12), min_size=1, max_size=4)


def _expected(files):
    """The same rules on plain lists: (rows kept in order, counts of all datasets together)."""
    kept, seen = [], set()
    counts = dict.fromkeys(parts.COUNTS, 0)
    for row in (row for file in files for row in file):
        counts["rows_in"] += 1
        if not (isinstance(row, dict) and row.get("query") and "pos" in row):
            counts["rejected"] += 1
            continue
        clean = {key: row[key].strip() for key in ("query", "pos", "dataset")}
        if "leak" in (clean["query"].lower(), clean["pos"].lower()):
            counts["decontaminated"] += 1
            continue
        neg = [n for n in row["neg"] if n.strip().lower() != "leak"]
        counts["negatives_decontaminated"] += len(row["neg"]) - len(neg)
        key = tuple(clean.values())
        if key in seen:
            counts["duplicates"] += 1
            continue
        seen.add(key)
        kept.append((row_id(clean["dataset"], clean["query"], [clean["pos"]]), neg))
    counts["rows"] = len(kept)
    return kept, counts


@given(FILES)
@settings(max_examples=60, deadline=None)
def test_any_corpus_is_reduced_exactly(files):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "evaluation.bin").write_bytes(fold_digest("LEAK"))
        source = FilesSource(path=name, task_type="retrieval")
        total = dict.fromkeys(parts.COUNTS, 0)
        for index, rows in enumerate(files):
            file = folder / f"{index}.jsonl"
            file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
            for counts in write_part(Unit(index, file, source), folder).values():
                total = {key: total[key] + counts[key] for key in total}
        paths = [part_path(folder, index) for index in range(len(files))]
        index = reduce.read_index(paths)
        first = reduce.first_of_each(index.ids)
        shards = reduce.write_rows(paths, first, folder)
        rows = [r for s in shards for r in pa.ipc.open_file(str(s)).read_all().to_pylist()]
        kept, expected = _expected(files)
        assert [(r["id"], r["neg"]) for r in rows] == kept
        assert total | {"rows": len(rows), "duplicates": int((~first).sum())} == expected


def test_first_of_each_of_many_ids():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (300, 16), dtype=np.uint8)[rng.integers(0, 300, 5000)]
    ids[:, :8] = ids[0, :8]  # only the second half tells them apart
    seen: set[bytes] = set()
    expected = [not (i in seen or seen.add(i)) for i in map(bytes, ids)]
    assert reduce.first_of_each(ids).tolist() == expected
    assert reduce.first_of_each(ids[:0]).tolist() == []


def test_shards_are_cut_and_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BATCH_ROWS", 16)
    monkeypatch.setattr(reduce, "SHARD_ROWS", 50)
    (tmp_path / "evaluation.bin").write_bytes(b"")
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps({"query": f"q{n}", "pos": "p"}) + "\n" for n in range(200)))
    write_part(Unit(0, file, FilesSource(path="x", task_type="retrieval")), tmp_path)
    paths = [part_path(tmp_path, 0)]
    kept = np.arange(200) % 3 > 0
    shards = reduce.write_rows(paths, kept, tmp_path)
    sizes = [len(pa.ipc.open_file(str(s)).read_all()) for s in shards]
    assert max(sizes) <= 50
    queries = [q for s in shards for q in pa.ipc.open_file(str(s)).read_all().column("query").to_pylist()]
    assert queries == [f"q{n}" for n in range(200) if n % 3]


def test_cap_is_exact_and_per_dataset():
    rng = np.random.default_rng(1)
    index = reduce.RowIndex(
        rng.integers(0, 256, (1000, 16), dtype=np.uint8),
        (np.arange(1000) % 2).astype(np.int32),
        (("a", "sts"), ("b", "sts")),
    )
    all_rows = np.ones(1000, dtype=bool)
    kept = reduce.under_cap(index, all_rows, 120, seed=3)
    assert [int(kept[index.codes == code].sum()) for code in (0, 1)] == [120, 120]
    assert reduce.under_cap(index, all_rows, None, seed=3) is all_rows
    assert reduce.under_cap(index, all_rows, 10_000, seed=3).all()
    assert (reduce.under_cap(index, all_rows, 60, seed=3) <= kept).all()  # a smaller cap keeps a part of the same rows
