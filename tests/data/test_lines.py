"""Lines and tables in spans: each row once, whatever the cut; nothing good is lost; memory stays bounded."""

from __future__ import annotations

import gzip
import io
import json
import os
import tracemalloc
import zlib

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.data import lines
from boom_ray.data.lines import byte_range, decompressed, split_lines
from boom_ray.data.sources import BadRow, Span, local_file, read_rows, spans

CHECKED = {zstd.CompressionParameter.checksum_flag: 1}  # as the command-line tool writes
PACKED = {".gz": gzip.compress, ".zst": lambda plain: zstd.compress(plain, options=CHECKED)}
# Long rows, so that a cut falls into a row, of text that does not compress away.
TEXTS = [{"n": n, "text": os.urandom(200).hex()} for n in range(2000)]
PLAIN = b"".join(json.dumps(row).encode() + b"\n" for row in TEXTS)


def _read(file):
    return list(read_rows(local_file(file)))


@given(
    text=st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b" ")), max_size=12).map(b"\n".join),
    width=st.integers(1, 9),
    block=st.integers(1, 7),
)
def test_ranges_side_by_side_give_each_line_once(text, width, block):
    original, lines._BLOCK = lines._BLOCK, block
    try:
        starts = range(0, max(len(text), 1), width)
        stops = [s + width if s + width < len(text) else None for s in starts]
        parts = [b"".join(byte_range(io.BytesIO(text), *r)) for r in zip(starts, stops, strict=True)]
        assert b"".join(parts) == text
        assert all(part.endswith(b"\n") for part in [p for p in parts if p][:-1])
        found = [line for part in parts for line in split_lines([part])]
        assert found == (text.split(b"\n")[:-1] if text.endswith(b"\n") or not text else text.split(b"\n"))
    finally:
        lines._BLOCK = original


def test_lines_of_spans_add_up_and_blank_ones_count(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(PLAIN.replace(b"\n", b"\n\n") + b"  \n")
    file, rows, counted = local_file(file), [], 0
    for span in spans(file, 10_000):
        part = read_rows(file, span)
        rows += [(counted + line, row) for line, row in part]
        counted += part.lines
    assert len(spans(file, 10_000)) > 50
    assert rows == [(2 * n + 1, row) for n, row in enumerate(TEXTS)]
    assert counted == 4001


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".ndjson.zst"])
def test_every_kind_of_lines(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    half = len(PLAIN) // 2  # in the middle of a row; packed files may hold several members
    pack = PACKED.get(os.path.splitext(suffix)[1], lambda b: b)
    file.write_bytes(pack(PLAIN[:half]) + pack(PLAIN[half:]))
    assert _read(file) == [(n + 1, row) for n, row in enumerate(TEXTS)]


def _tables(folder):
    table = pa.Table.from_pylist(TEXTS)
    pq.write_table(table, folder / "a.parquet", row_group_size=300)
    pyarrow.feather.write_feather(table, folder / "b.feather", chunksize=300)
    with pa.ipc.new_file(folder / "c.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    with pa.ipc.new_stream(folder / "d.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return sorted(folder.iterdir())


def test_every_kind_of_tables(tmp_path):
    for path in _tables(tmp_path):
        file = local_file(path)
        cut = spans(file, 100_000)
        assert (len(cut) > 3) == (path.name != "d.arrow"), path.name
        assert [row for span in cut for _, row in read_rows(file, span)] == TEXTS, path.name
        assert [line for line, _ in read_rows(file)] == list(range(1, 2001)), path.name


def test_damaged_tables_keep_what_came_before(tmp_path):
    for path in _tables(tmp_path):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + b"\xff" * 4000 + whole[len(whole) // 2 + 4000 :])
        rows = _read(path)
        good = [row for _, row in rows if not isinstance(row, BadRow)]
        assert good[:300] == TEXTS[:300], path.name
        path.write_bytes(whole[:1000])
        ((line, bad),) = _read(path)
        assert (line, isinstance(bad, BadRow)) == (1, True), path.name
        assert spans(local_file(path), 100) == [Span()]
        path.unlink()


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.999])
def test_cut_files_keep_every_whole_row(tmp_path, suffix, share):
    packed = PACKED[suffix](PLAIN)
    cut = packed[: int(len(packed) * share)]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(cut)
    rows = _read(tmp_path / f"a.jsonl{suffix}")
    reference = zlib.decompressobj(31) if suffix == ".gz" else zstd.ZstdDecompressor()
    whole = reference.decompress(cut).count(b"\n")
    assert whole > 100
    assert [row for _, row in rows[:-1]] == TEXTS[:whole]
    assert rows[-1][0] == whole + 1
    assert "cut or damaged from here on" in rows[-1][1].reason


@pytest.mark.parametrize("suffix", PACKED)
def test_a_flipped_byte_keeps_what_came_before(tmp_path, suffix):
    packed = bytearray(PACKED[suffix](PLAIN))
    place = len(packed) // 2
    packed[place : place + 64] = b"\xff" * 64
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed)
    rows = _read(tmp_path / f"a.jsonl{suffix}")
    good = [row for _, row in rows if not isinstance(row, BadRow)]
    least = 900 if suffix == ".gz" else 600  # zstd knows no byte of a block before all of it is good
    assert len(good) >= least
    assert good[:least] == TEXTS[:least]
    assert isinstance(rows[-1][1], BadRow)


def test_padding_after_a_member_is_no_damage_and_garbage_is(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"n": 1}\n') + b"\0" * 512)
    assert _read(file) == [(1, {"n": 1})]
    file.write_bytes(gzip.compress(b'{"n": 1}\n') + b"garbage")
    assert [isinstance(row, BadRow) for _, row in _read(file)] == [False, True]
    file.write_bytes(b"")
    assert _read(file) == []


def _swollen(line, suffix, size):
    engine = zlib.compressobj(9, wbits=31) if suffix == ".gz" else zstd.ZstdCompressor(level=19)
    many = line * ((1 << 20) // len(line))
    parts = [engine.compress(b'{"n": 1}\n')] + [engine.compress(many) for _ in range(size >> 20)]
    return b"".join([*parts, engine.flush()])


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("line", [b"x" * 4096, b'{"text": "%s"}\n' % (b"x" * 4000)])
def test_a_decompression_bomb_is_one_bad_row_in_bounded_memory(tmp_path, suffix, line):
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(_swollen(line, suffix, 200 << 20))
    assert file.stat().st_size < 1 << 20
    tracemalloc.start()
    rows = read_rows(local_file(file))
    good, bad = 0, []
    for number, row in rows:
        if isinstance(row, BadRow):
            bad.append((number, row.reason))
        good += not isinstance(row, BadRow)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert good >= 1
    assert bad[-1] == (rows.lines, f"the file swells to more than {lines.MAX_RATIO} times its size, which no text does")
    assert len(bad) == 1
    assert peak < 64 << 20


def test_a_table_that_repeats_one_long_text_is_read_in_bounded_memory(tmp_path):
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", dictionary_pagesize_limit=16 << 20)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    tracemalloc.start()
    read = sum(len(row["text"]) for _, row in read_rows(local_file(tmp_path / "a.parquet")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == 600 << 20
    assert peak < 80 << 20


def test_a_line_without_end_is_one_bad_row_in_bounded_memory(tmp_path):
    file = tmp_path / "a.jsonl"
    with open(file, "wb") as out:
        out.write(b'{"n": 1}\n')
        for _ in range(100):
            out.write(b"x" * (1 << 20))
        out.write(b'\n{"n": 2}\n')
    tracemalloc.start()
    rows = _read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == [(1, {"n": 1}), (2, BadRow("the line is longer than 8 MiB")), (3, {"n": 2})]
    assert peak < 48 << 20
    parts = [list(read_rows(local_file(file), span)) for span in spans(local_file(file), 10 << 20)]
    assert [len(part) for part in parts] == [2, *[0] * 9, 1]


def test_nul_bytes_and_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n{"n": "a\0b"}\n\0\0\0\n{"n": 2}')
    rows = _read(file)
    assert [row for _, row in rows if not isinstance(row, BadRow)] == [{"n": 1}, {"n": 2}]
    assert [line for line, row in rows if isinstance(row, BadRow)] == [2, 3]


@given(st.binary(max_size=400), st.sampled_from([".gz", ".zst"]))
def test_any_bytes_end_in_rows_or_one_damage(noise, suffix):
    packed = PACKED[suffix](b'{"n": 1}\n')
    try:
        text = b"".join(decompressed(io.BytesIO(packed + noise), suffix))
    except lines.Damaged:
        text = b'{"n": 1}\n'
    assert text.startswith(b'{"n": 1}\n')
