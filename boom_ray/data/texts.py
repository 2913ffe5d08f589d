"""Rows of a corpus as text, by their row numbers: for people who want to read what a bag holds or does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa


def read_texts(corpus: Path, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """``{"row", "id", "dataset", "task_type", "query", "pos", "neg", ...}`` of row numbers, ascending.

    Row numbers run over the row shards in order, as over the token shards that were made of them. One record batch is
    in memory at a time.
    """
    wanted, start = np.sort(rows), 0
    for shard in sorted(corpus.glob("rows-*.arrow")):
        with pa.memory_map(str(shard)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                first, last = np.searchsorted(wanted, [start, start + len(batch)])
                here = wanted[first:last]
                for row, content in zip(here.tolist(), batch.take(pa.array(here - start)).to_pylist(), strict=True):
                    yield {"row": row, **content, "id": content["id"].hex()}
                start += len(batch)
