"""Reading checkpoints: what is right is read exactly, what is hostile or damaged is refused with a message."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load_file, save_file

from boom_ray.config import BoomError
from boom_ray.merge.headers import parse_header, read_header
from boom_ray.merge.layout import plan_layout, preallocate
from boom_ray.merge.shards import INDEX, SINGLE, open_checkpoint


def test_single_file_and_module_folders(tmp_path: Path) -> None:
    tensors = draw(1)
    model = write_model(tmp_path / "m", tensors)
    dense = {"linear.weight": np.ones((4, 4), np.float32)}
    (model / "2_Dense").mkdir()
    save_file(dense, model / "2_Dense" / SINGLE)
    modules = json.loads((model / "modules.json").read_text())
    (model / "modules.json").write_text(json.dumps([*modules, {"path": "2_Dense"}]))
    found = open_checkpoint(model)
    assert set(found.tensors) == {*tensors, "2_Dense/linear.weight"}
    for name, value in tensors.items():
        assert found.view(name).tobytes() == value.tobytes() == found.read(name).tobytes()
        assert found.tensors[name].shape == value.shape
    assert (found.read("2_Dense/linear.weight", 3, 7) == 1).all()
    assert found.bytes == sum(v.nbytes for v in tensors.values()) + 64


@pytest.mark.parametrize("stored", [np.float16, "bf16"])
def test_16_bit_tensors_are_read_exactly(tmp_path: Path, stored: object) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    value = torch.randn(50, 4).to(torch.bfloat16 if stored == "bf16" else torch.float16)
    tmp_path.joinpath("m").mkdir()
    save_torch({"a": value}, tmp_path / "m" / SINGLE)
    assert (open_checkpoint(tmp_path / "m").read("a") == value.float().numpy().ravel()).all()


def test_shards_with_index_as_written_here(tmp_path: Path) -> None:
    tensors = draw(2)
    layout = plan_layout({name: ("F32", value.shape) for name, value in tensors.items()}, 3000)
    assert len(layout.sizes) > 2
    tmp_path.joinpath("m").mkdir()
    preallocate(layout, tmp_path / "m")
    for name, place in layout.tensors.items():
        with open(tmp_path / "m" / place.file, "r+b") as stream:
            stream.seek(place.offset)
            stream.write(tensors[name].tobytes())
    found = open_checkpoint(tmp_path / "m")
    assert all(found.view(name).tobytes() == value.tobytes() for name, value in tensors.items())
    loaded = {name: value for file in layout.sizes for name, value in load_file(tmp_path / "m" / file).items()}
    assert all((loaded[name] == value).all() for name, value in tensors.items())


def index(model: Path, change: object) -> Path:
    names = list(draw(1))
    weight_map = dict.fromkeys(names, SINGLE)
    weight_map.update(change)  # type: ignore[call-overload]
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return model


@pytest.mark.parametrize(
    "name",
    ["../secret/model.safetensors", "/etc/m.safetensors", "a/../../m.safetensors", "x\0.safetensors", "C:m.safetensors",
     "..\\m.safetensors", "sub/model.safetensors", "model.bin", "", "..", "a" * 300 + ".safetensors"],
)  # fmt: skip
def test_index_names_that_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    outside = write_model(tmp_path / "secret", draw(1))
    assert outside.is_dir()
    model = index(write_model(tmp_path / "m", draw(1)), {"pooler.dense.weight": name})
    with pytest.raises(BoomError, match=r"Refused|not the bare name"):
        open_checkpoint(model)


def test_links_that_leave_the_directory_are_refused_but_the_hub_cache_is_read(tmp_path: Path) -> None:
    real = write_model(tmp_path / "real", draw(1))
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / SINGLE).symlink_to(real / SINGLE)
    with pytest.raises(BoomError, match="link that leaves"):
        open_checkpoint(linked)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "models--a--b" / "blobs" / "abcdef"
    blob.parent.mkdir()
    blob.write_bytes((real / SINGLE).read_bytes())
    (snapshot / SINGLE).symlink_to("../../blobs/abcdef")
    assert set(open_checkpoint(snapshot).tensors) == set(draw(1))


class Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(Path.cwd() / "canary-of-a-pickle"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", SINGLE])
def test_pickles_are_never_loaded_also_renamed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).write_bytes(pickle.dumps(Canary()))
    with pytest.raises(BoomError, match=r"never read|no safetensors file"):
        open_checkpoint(tmp_path / "m")
    assert not (tmp_path / "canary-of-a-pickle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ghost": SINGLE}, "lacks 'ghost'"),
        ({"pooler.dense.weight": "model-2.safetensors"}, "not there"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path, change: object, message: str) -> None:
    with pytest.raises(BoomError, match=message):
        open_checkpoint(index(write_model(tmp_path / "m", draw(1)), change))


def header(entries: object) -> bytes:
    return json.dumps(entries).encode()


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (header({"a": A, "b": A}), "starts at byte 0"),
        (header({"a": {**A, "data_offsets": [8, 16]}}), "starts at byte 8"),
        (header({"a": {**A, "shape": [3]}}), "does not fit"),
        (header({"a": {**A, "shape": [2**40, 2**40]}}), "does not fit"),
        (header({"a": {**A, "data_offsets": [-8, 0]}}), "whole numbers"),
        (header({"a": {**A, "shape": [2.0]}}), "whole numbers"),
        (header({"a": {**A, "shape": [True]}}), "whole numbers"),
        (header({"a": {**A, "dtype": "F31"}}), "unknown type"),
        (header({"a": {**A, "more": 1}}), "exactly"),
        (header({"a/b": A}), "slash"),
        (header({"a": A, "__metadata__": {"x": 1}}), "__metadata__"),
        (b'{"a": ' + header(A) + b', "a": ' + header(A) + b"}", "twice"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"\xff": 1}', "not valid JSON"),
        (header({}), "describes"),
    ],
)
def test_damaged_headers_are_refused(text: bytes, message: str) -> None:
    with pytest.raises(BoomError, match=message):
        parse_header(text, 8 + len(text), 8 + len(text) + 8, Path("f"), "f")


def test_a_header_that_claims_too_much_is_not_read() -> None:
    for claimed in (0, 1, 1 << 40, (1 << 64) - 1, 101):
        with pytest.raises(BoomError, match="claims"):
            read_header(claimed.to_bytes(8, "little"), 108, Path("f"))


VALID = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [32, 38]},
    "c": {"dtype": "I64", "shape": [], "data_offsets": [38, 46]},
}
TEXT = json.dumps(VALID).encode()
FILE = len(TEXT).to_bytes(8, "little") + TEXT + bytes(46)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def read_or_refuse(data: bytes) -> bool:
    """True where a file is read, with tensors that cover it without hole or overlap; False where it is refused."""
    try:
        length = read_header(data[:8], len(data), Path("f"))
        tensors = parse_header(data[8 : 8 + length], 8 + length, len(data), Path("f"), "f")
    except BoomError:
        return False
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.bytes)):
        assert tensor.offset == end
        end += tensor.bytes
    assert end == len(data)
    return True


def test_ten_thousand_mutated_files_are_refused_or_read_in_little_memory() -> None:
    """Bytes changed, cut out, doubled and inserted; what safetensors itself reads and we refuse is counted as none."""
    rng = np.random.default_rng(11)
    tracemalloc.start()
    read = 0
    for _ in range(10_000):
        data = bytearray(FILE)
        for _ in range(rng.integers(1, 4)):
            place, other = (int(x) for x in rng.integers(0, len(data), 2))
            kind = rng.integers(4)
            if kind == 0:
                data[place] = rng.integers(256)
            elif kind == 1:
                del data[place : place + 1 + other % 9]
            elif kind == 2:
                data[place:place] = data[other : other + 9]
            else:
                data[place] = b'0123456789,:{}[]"-e.'[other % 20]
        accepted = read_or_refuse(bytes(data))
        read += accepted
        try:
            deserialize(bytes(data))
            reference = True
        except SafetensorError:
            reference = False
        if accepted:
            assert reference, bytes(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 100 < read < 9000  # the mutations reach both sides
    assert peak < 20_000_000


@settings(max_examples=600, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["a", "b", "c", "__metadata__"]), st.sampled_from(["dtype", "shape", "data_offsets", ""]), JSON)
def test_hundreds_of_headers_with_wrong_values(name: str, key: str, value: object) -> None:
    entries = json.loads(TEXT)
    if not key or name == "__metadata__":
        entries[name] = value
    else:
        entries[name][key] = value
    text = json.dumps(entries).encode()
    read_or_refuse(len(text).to_bytes(8, "little") + text + bytes(46))


@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(JSON, st.sampled_from(["weight_map", "metadata"]))
def test_hundreds_of_wrong_indices(tmp_path_factory: pytest.TempPathFactory, value: object, key: str) -> None:
    model = tmp_path_factory.getbasetemp() / "indexed"
    if not model.exists():
        write_model(model, draw(1))
    content = {"weight_map": dict.fromkeys(draw(1), SINGLE), key: value}
    (model / INDEX).write_text(json.dumps(content))
    with contextlib.suppress(BoomError):
        assert set(open_checkpoint(model).tensors) == set(draw(1))
