"""Members that lie elsewhere: brought to this machine once, after asking how large they are."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from boom_ray.config import BoomError
from boom_ray.ledger import identity
from boom_ray.paths import is_safe
from boom_ray.stores.files import Entry, check_room, hub_parts, is_remote, list_files, open_file, retried, shown, split

_WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md")


def local_directory(model: str) -> Path:
    """The directory of a model: a local path as it is, ``hf://owner/name[@revision]`` or a file system's URI staged.

    Raises:
        BoomError: nothing there, not reachable, or too large for the free disk.
    """
    if is_remote(model):
        return _staged(model)
    path = Path(os.path.abspath(model))
    if not path.is_dir() and model.count("/") == 1 and not model.startswith((".", "/", "~")):
        raise BoomError(f"{path} is not a directory. For a model of the Hugging Face hub write hf://{model}.")
    return path


def staging_home() -> Path:
    """Where remote members are kept: ``$BOOM_RAY_HOME/staged``, else ``~/boom_ray/staged``."""
    return Path(os.environ.get("BOOM_RAY_HOME") or Path.home() / "boom_ray") / "staged"


def _staged(model: str) -> Path:
    root = _path(model).rstrip("/")
    names = {_below(entry, root): entry for entry in list_files(model)}
    names = {name: entry for name, entry in sorted(names.items()) if _is_wanted(name)}
    if not names:
        raise BoomError(
            f"{shown(model)} holds no model files. Give the folder with config.json and the safetensors weights."
        )
    if model.startswith("hf://"):
        return _from_hub(model, names)
    target = staging_home() / identity(
        [shown(model).rstrip("/"), [[name, e.size, e.digest] for name, e in names.items()]]
    )
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    check_room(model, sum(entry.size for entry in names.values()), target.parent)
    _fetch(names, target)
    return target


def _from_hub(model: str, names: dict[str, Entry]) -> Path:
    """Through the hub's own cache, which other tools share; interrupted downloads go on where they stopped."""
    import huggingface_hub
    from huggingface_hub import constants

    check_room(model, sum(entry.size for entry in names.values()), Path(constants.HF_HUB_CACHE))
    _, name, commit, _ = hub_parts(next(iter(names.values())).uri)
    below = hub_parts(model)[3]
    wanted = [f"{below}/{n}".strip("/") for n in names]
    fetch = partial(huggingface_hub.snapshot_download, name, revision=commit, allow_patterns=wanted)
    return Path(retried(fetch, model, "fetched")) / below


def _fetch(names: dict[str, Entry], target: Path) -> None:
    """All files, in a temporary folder that becomes ``target`` when it is whole."""
    temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        for name, entry in names.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with open_file(entry.uri, entry.size) as stream, open(file, "wb") as out:
                shutil.copyfileobj(stream, out, 8 << 20)
        if not target.is_dir():  # another process may have been quicker
            os.rename(temporary, target)
    except OSError as error:
        raise BoomError(f"{error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _path(uri: str) -> str:
    return hub_parts(uri)[3] if uri.startswith("hf://") else split(uri)[2]


def _below(entry: Entry, root: str) -> str:
    path = _path(entry.uri)
    return path.removeprefix(root).lstrip("/") if root else path


def _is_wanted(name: str) -> bool:
    parts: Sequence[str] = PurePosixPath(name).parts
    return name.endswith(_WANTED) and not {"onnx", "openvino"} & set(parts) and is_safe(name)
