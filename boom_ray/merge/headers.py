"""The safetensors header and JSON files around it: parsed with nothing taken on trust.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
FLOATS = ("F32", "BF16", "F16")
STORAGE: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "F16": np.dtype("<f2")}
_MAX_HEADER = 16 << 20  # about 100,000 tensors; bounds what a hostile file can make the JSON parser allocate
_MAX_JSON = 16 << 20


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: ``bytes`` of ``file`` from ``offset`` on; ``shape`` in elements of ``dtype``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * ITEM_BYTES[self.dtype]


def read_json(file: Path) -> Any:
    """A JSON file of at most 16 MiB without duplicate keys.

    Raises:
        BoomError: too large, not UTF-8, not JSON, nested too deeply, or a key twice.
    """
    if file.stat().st_size > _MAX_JSON:
        raise BoomError(f"{file} has {file.stat().st_size} bytes; at most {_MAX_JSON} are read.")
    return parse_json(file.read_bytes(), file)


def parse_json(data: bytes, origin: Path) -> Any:
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BoomError(
            f"{origin}: not valid JSON ({str(error)[:120]}). The file is damaged: fetch it again."
        ) from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def read_header(first: bytes, size: int, path: Path) -> int:
    """Length of the JSON header, from a file's first 8 bytes and its size."""
    if len(first) < 8:
        raise BoomError(f"{path} has {size} bytes: not a safetensors file. Fetch it again.")
    length = int.from_bytes(first, "little")
    if first[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise BoomError(f"{path} is a pickle or zip file with a safetensors name. Pickled weights are never read.")
    if length > _MAX_HEADER or 8 + length > size or length < 2:
        raise BoomError(
            f"{path}: the header claims {length} bytes in a file of {size} (at most {_MAX_HEADER} are read). "
            f"The file is damaged or no safetensors file: fetch it again."
        )
    return length


def parse_header(text: bytes, data_start: int, size: int, path: Path, file: str) -> dict[str, Tensor]:
    """Check a safetensors header against the file's size: known types, shapes that fit, no hole, no overlap.

    Args:
        text: the JSON header; data_start: file offset of the first data byte; size: file size in bytes.
    """
    header = parse_json(text, path) if text.startswith(b"{") else None
    if not isinstance(header, dict):
        raise BoomError(f"{path}: the header is not a JSON object. The file is damaged: fetch it again.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BoomError(f"{path}: '__metadata__' must map text to text.")
    entries = sorted(((_entry(name, value, path), name) for name, value in header.items()), key=lambda e: e[0][2:])
    end = 0
    tensors = {}
    for (dtype, shape, begin, stop), name in entries:
        if begin != end:
            raise BoomError(f"{path}: tensor '{name[:120]}' starts at byte {begin}, but the one before ends at {end}.")
        end = stop
        tensors[name] = Tensor(name, dtype, shape, file, data_start + begin)
    if data_start + end != size:
        raise BoomError(f"{path} has {size} bytes, but its header describes {data_start + end}. Fetch it again.")
    return tensors


def _entry(name: str, value: Any, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    where = f"{path}: tensor '{name[:120]}'"
    if "/" in name or "\0" in name:
        raise BoomError(f"{where}: a slash or a zero byte in a tensor's name. Refused.")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise BoomError(f"{where} must have exactly dtype, shape and data_offsets.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BoomError(f"{where} has the unknown type {str(dtype)[:40]!r}.")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 32:
        raise BoomError(f"{where}: shape and data_offsets must be lists of whole numbers from 0 up.")
    begin, stop = offsets
    if stop - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise BoomError(f"{where} has shape {shape} of {dtype}, which does not fit its {stop - begin} bytes.")
    return dtype, tuple(shape), begin, stop


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)
