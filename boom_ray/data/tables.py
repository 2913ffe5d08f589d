"""Rows and spans of columnar files: Parquet by row groups, Arrow IPC files and streams by record batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

from boom_ray.data.lines import Damaged
from boom_ray.stores.files import Unreachable

_ROWS = 64  # turned into Python objects at once: a dictionary lets a tiny file claim one long text for each
_MAX_GROUP_BYTES = 4 << 30  # of one row group, decompressed
_IPC_MAGIC = b"ARROW1"


def group_sizes(stream: IO[bytes], parquet: bool) -> list[int]:
    """Bytes of every row group (Parquet) or record batch (Arrow file); empty for an Arrow stream or a damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if parquet:
            meta = pq.ParquetFile(stream).metadata
            return [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
        if not _is_ipc_file(stream):
            return []
        count = pa.ipc.open_file(stream).num_record_batches
        size = stream.seek(0, 2)
    except (pa.ArrowException, OSError):
        return []  # read_table says what is wrong with it
    return [size // count] * count if count else []


def cut(sizes: Sequence[int], target: int) -> list[tuple[int, int]]:
    """Neighbours put together until they reach ``target`` bytes: [start, stop) over all of ``sizes``."""
    ranges, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        total += size
        if total >= target or index == len(sizes) - 1:
            ranges.append((start, index + 1))
            start, total = index + 1, 0
    return ranges


def read_table(stream: IO[bytes], parquet: bool, start: int, stop: int | None) -> Iterator[Any]:
    """The rows of row groups or record batches [start, stop).

    Raises:
        Damaged: after the rows that could be read.
    """
    import pyarrow as pa

    try:
        for batch in (_parquet_batches if parquet else _arrow_batches)(stream, start, stop):
            for at in range(0, len(batch), _ROWS):
                yield from batch.slice(at, _ROWS).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, Unreachable) or getattr(error, "errno", None):
            raise  # the disk or the network; Arrow says OSError of damaged data, too
        kind = "Parquet" if parquet else "Arrow"
        raise Damaged(f"the {kind} file is damaged from here on ({str(error).splitlines()[0]})") from None


def _parquet_batches(stream: IO[bytes], start: int, stop: int | None) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(stream) as table:
        meta = table.metadata
        for group in range(start, meta.num_row_groups if stop is None else stop):
            size = meta.row_group(group).total_byte_size
            if size > _MAX_GROUP_BYTES:
                raise Damaged(f"a row group has {size >> 20} MiB: write the file again with smaller ones")
            yield from table.iter_batches(batch_size=_ROWS, row_groups=[group])


def _arrow_batches(stream: IO[bytes], start: int, stop: int | None) -> Iterator[Any]:
    import pyarrow as pa

    if _is_ipc_file(stream):
        reader = pa.ipc.open_file(stream)
        for number in range(start, reader.num_record_batches if stop is None else stop):
            yield reader.get_batch(number)
    else:
        yield from pa.ipc.open_stream(stream)


def _is_ipc_file(stream: IO[bytes]) -> bool:
    stream.seek(0)
    magic = stream.read(len(_IPC_MAGIC))
    stream.seek(0)
    return magic == _IPC_MAGIC
