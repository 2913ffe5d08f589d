"""Safetensors checkpoints, opened with every name, offset and shape checked first.

Only safetensors is read. A checkpoint is ``model.safetensors`` or the shards of ``model.safetensors.index.json``, and
the weights of the module folders that ``modules.json`` names (a Dense layer, for example), whose tensors are called
``FOLDER/name`` here. Nothing a file says is trusted: see :mod:`boom_ray.merge.headers` and :mod:`boom_ray.paths`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.config import BoomError
from boom_ray.merge.headers import FLOATS, ITEM_BYTES, STORAGE, Tensor, parse_header, read_header, read_json
from boom_ray.paths import inside, safe_name

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Checkpoint:
    """The validated tensors of a model directory, in the order of its files. Holds no file open."""

    directory: Path
    tensors: Mapping[str, Tensor]
    file_bytes: Mapping[str, int]

    def path(self, name: str) -> Path:
        return self.directory / self.tensors[name].file

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors.values())

    def view(self, name: str) -> np.ndarray:
        """The tensor as a flat, read-only, memory-mapped array in its storage type (bf16 as its 16 bits)."""
        tensor = self._tensor(name)
        dtype = STORAGE.get(tensor.dtype, np.dtype("u1"))
        if not tensor.size:
            return np.empty(0, dtype)
        return np.memmap(self.path(name), np.uint8, "r", tensor.offset, (tensor.bytes,)).view(dtype)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements ``start:stop`` of the flattened tensor, copied, as float32 (exact for all three float types)."""
        tensor = self._tensor(name)
        if tensor.dtype not in FLOATS:
            raise BoomError(
                f"{self.path(name)}: tensor '{name}' has type {tensor.dtype}, not one of {', '.join(FLOATS)}."
            )
        stop = tensor.size if stop is None else min(stop, tensor.size)
        item = ITEM_BYTES[tensor.dtype]
        with open(self.path(name), "rb", buffering=0) as stream:
            stream.seek(tensor.offset + start * item)
            data = stream.read(max(0, stop - start) * item)
        raw = np.frombuffer(data, STORAGE[tensor.dtype])
        if tensor.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)

    def _tensor(self, name: str) -> Tensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise BoomError(f"{self.directory} has no tensor '{name}'.") from None

    @cached_property
    def digest_input(self) -> list[list[Any]]:
        """What names the checkpoint without reading its weights: tensors with places, file sizes and times."""
        files = {name: (self.directory / name).stat() for name in self.file_bytes}
        places = [[t.name, t.dtype, list(t.shape), t.file, t.offset] for t in self.tensors.values()]
        return [places, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in sorted(files.items())]]


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """Read and check the headers of a model directory; reads no weights.

    Raises:
        BoomError: no safetensors weights (pickle is never read), an unsafe file name, a damaged header or index, a
            tensor twice or in another file than the index says.
    """
    root = Path(directory)
    if not root.is_dir():
        raise BoomError(
            f"member {root} is not a directory. Give the path of a model directory with safetensors weights."
        )
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for folder in ("", *module_folders(root)):
        for file, listed in _weight_files(root, folder):
            found, sizes[file] = _read_file(root, file)
            _check_listed(root / file, found, listed)
            for tensor in found.values():
                name = f"{folder}/{tensor.name}" if folder else tensor.name
                if name in tensors:
                    raise BoomError(f"{root}: tensor '{name}' is in {tensors[name].file} and again in {file}.")
                tensors[name] = Tensor(name, tensor.dtype, tensor.shape, file, tensor.offset)
    if not tensors:
        raise BoomError(_no_weights(root))
    return Checkpoint(root, tensors, sizes)


def module_folders(root: Path) -> list[str]:
    """Folders of ``modules.json`` other than the root itself, checked to lie inside the directory."""
    file = root / "modules.json"
    if not file.is_file():
        return []
    modules = read_json(file)
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("path", ""), str) for m in modules
    ):
        raise BoomError(f"{file} must be a list of modules, each with a 'path'.")
    folders = [module.get("path", "").rstrip("/") for module in modules]
    for folder in folders:
        safe_name(folder, file) if folder else None
    return list(dict.fromkeys(folder for folder in folders if folder))


def _weight_files(root: Path, folder: str) -> list[tuple[str, frozenset[str] | None]]:
    """The weight files of the root or a module folder, each with the tensors the index puts there (None: no index)."""
    prefix = f"{folder}/" if folder else ""
    index = root / f"{prefix}{INDEX}"
    if not index.is_file():
        file = f"{prefix}{SINGLE}"
        if (root / file).is_file():
            return [(inside(root, file, root / file), None)]
        pickled = [p.name for p in (root / folder).glob("*") if p.suffix in _PICKLES and "training" not in p.name]
        if pickled and folder:
            raise BoomError(
                f"{root / folder} holds {pickled[0]}: pickled weights are never read. Save it as safetensors."
            )
        return []
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise BoomError(f"{index}: 'weight_map' must map tensor names to file names.")
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(shard, set()).add(name)
    return [
        (inside(root, f"{prefix}{_bare(s, index)}", index), frozenset(names)) for s, names in sorted(shards.items())
    ]


def _bare(name: str, origin: Path) -> str:
    safe_name(name, origin)
    if "/" in name or not name.endswith(".safetensors"):
        raise BoomError(f"{origin}: '{name[:200]}' is not the bare name of a .safetensors file beside the index.")
    return name


def _check_listed(file: Path, found: Mapping[str, Tensor], listed: frozenset[str] | None) -> None:
    if listed is None or listed == found.keys():
        return
    missing, extra = sorted(listed - found.keys()), sorted(found.keys() - listed)
    what = f"lacks {_some(missing)}" if missing else f"holds {_some(extra)}, which the index does not list there"
    raise BoomError(f"{file} {what}. The checkpoint is damaged: fetch it again.")


def _some(names: list[str]) -> str:
    return ", ".join(f"'{n[:120]}'" for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _no_weights(root: Path) -> str:
    pickled = sorted(p.name for p in root.iterdir() if p.suffix in _PICKLES)
    if pickled:
        return (
            f"{root} holds only {pickled[0]}: pickled weights can run code and are never read. Convert once with "
            f"save_pretrained(..., safe_serialization=True)."
        )
    return f"{root} has no {SINGLE} and no {INDEX}. Give a model directory with safetensors weights."


def _read_file(root: Path, file: str) -> tuple[dict[str, Tensor], int]:
    path = root / file
    size = path.stat().st_size
    with open(path, "rb", buffering=0) as stream:
        header, data_start = read_header(stream.read(8), size, path), 0
        data_start = 8 + header
        text = stream.read(header)
    return parse_header(text, data_start, size, path, file), size


class Maps:
    """Read-only mappings of the members' files, each file once; unmapped together."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def address(self, path: Path) -> int:
        """Address of the file's first byte.

        Raises:
            BoomError: the file cannot be opened or mapped.
        """
        if path not in self._maps:
            try:
                with open(path, "rb") as stream:
                    self._maps[path] = mmap.mmap(stream.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
            except (OSError, ValueError) as error:
                raise BoomError(f"{path} cannot be read ({error}).") from None
        return np.frombuffer(self._maps[path], np.uint8).ctypes.data

    def advise(self, path: Path, start: int, stop: int, needed: bool) -> None:
        """Tell the system that bytes ``start:stop`` are needed soon, or that their pages may leave this process."""
        page = mmap.PAGESIZE
        begin = start // page * page
        advice = mmap.MADV_WILLNEED if needed else mmap.MADV_DONTNEED
        self._maps[path].madvise(advice, begin, stop - begin)

    def close(self) -> None:
        self._maps.clear()  # unmapped with the last view of them

    def __enter__(self) -> Maps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
