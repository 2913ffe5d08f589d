"""How a merge runs, whatever it computes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from boom_ray.config import BoomError

_UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class MergeOptions:
    """How a merge runs; nothing here changes a byte of the weights, except that ``shard_size`` cuts the files.

    Attributes:
        workers: threads, default one per core; memory: of the members' weights and buffers at once, beside the
        interpreter and its libraries; mmap: no such limit, the members stay mapped (fastest); overwrite: replace an
        existing output, by a swap at the end; shard_size: largest output file; durable: flush to the disk before the
        result appears.
    """

    workers: int | None = None
    memory: str = "256MB"
    mmap: bool = False
    overwrite: bool = False
    shard_size: str = "4GB"
    durable: bool = True

    @property
    def window(self) -> int | None:
        return None if self.mmap else parse_bytes(self.memory)


def parse_bytes(text: str) -> int:
    """``256MB``, ``4 GB`` … as bytes, decimal units.

    Raises:
        BoomError: not such a text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?B)\s*", text, re.IGNORECASE)
    if not match or not math.isfinite(float(match.group(1))):
        raise BoomError(f"'{text}' is no size. Write for example 256MB or 4GB.")
    return max(1, int(float(match.group(1)) * _UNITS[match.group(2).upper()]))
