"""Members that lie elsewhere: brought to this machine once, after asking how large they are."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

from boom_ray.config import BoomError
from boom_ray.ledger import identity

_WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md")
_RESERVE = 1 << 30  # bytes left free beside what is staged


def local_directory(model: str) -> Path:
    """The directory of a model: a local path as it is, ``hf://owner/name[@revision]`` or a file system's URI staged.

    Raises:
        BoomError: nothing there, not reachable, or too large for the free disk.
    """
    if model.startswith("hf://"):
        return _from_hub(model)
    if "://" in model:
        return _from_filesystem(model)
    path = Path(os.path.abspath(model))
    if not path.is_dir() and model.count("/") == 1 and not model.startswith((".", "/", "~")):
        raise BoomError(f"{path} is not a directory. For a model of the Hugging Face hub write hf://{model}.")
    return path


def staging_home() -> Path:
    """Where remote members are kept: ``$BOOM_RAY_HOME/staged``, else ``~/boom_ray/staged``."""
    return Path(os.environ.get("BOOM_RAY_HOME") or Path.home() / "boom_ray") / "staged"


def _check_room(model: str, size: int, place: Path) -> None:
    existing = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if size + _RESERVE > free:
        raise BoomError(
            f"{model} has {size / 1e9:.2f} GB and {existing} has {free / 1e9:.2f} GB free. "
            f"Make room, or set BOOM_RAY_HOME to a larger disk."
        )


def _from_hub(model: str) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    name, _, revision = model.removeprefix("hf://").partition("@")
    try:
        info: Any = huggingface_hub.HfApi().model_info(name, revision=revision or None, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_wanted(file.rfilename)}
        _check_room(model, sum(files.values()), Path(constants.HF_HUB_CACHE))
        return Path(huggingface_hub.snapshot_download(name, revision=info.sha, allow_patterns=list(files)))
    except BoomError:
        raise
    except Exception as error:  # the hub's library raises errors of several libraries below it
        raise BoomError(f"{model} cannot be fetched ({type(error).__name__}: {error}).") from None


def _from_filesystem(model: str) -> Path:
    import pyarrow.fs as filesystems

    try:
        source, root = filesystems.FileSystem.from_uri(model)
        entries = source.get_file_info(filesystems.FileSelector(root, recursive=True))
    except Exception as error:  # pyarrow raises its own, the operating system's and plain value errors here
        raise BoomError(f"{model} cannot be listed ({type(error).__name__}: {error}).") from None
    names = {str(PurePosixPath(e.path).relative_to(root)): e for e in entries if e.is_file and _is_wanted(e.path)}
    if not names:
        raise BoomError(f"{model} holds no model files. Give the folder with config.json and the safetensors weights.")
    listing = [[name, e.size, e.mtime_ns] for name, e in sorted(names.items())]
    target = staging_home() / identity([model, listing])
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_room(model, sum(e.size for e in names.values()), target.parent)
    temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        for name, entry in names.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            with source.open_input_stream(entry.path) as stream, open(temporary / name, "wb") as out:
                shutil.copyfileobj(stream, out, 8 << 20)
        os.rename(temporary, target)
    except OSError as error:
        raise BoomError(f"{model} cannot be fetched ({error}).") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.endswith(_WANTED) and not {"onnx", "openvino"} & set(parts) and ".." not in parts
