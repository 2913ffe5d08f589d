"""The encoder: vectors equal to those of sentence-transformers and of transformers by hand; a portable directory."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import MAX_TOKENS, WORDS
from small_qwen import write_qwen

from boom_ray.base import import_base, resolve_base
from boom_ray.config import BoomError
from boom_ray.encoder import Encoder, embed, length_chunks, pool
from boom_ray.model_files import load_tokenizer

TEXTS = [" ".join(WORDS[i : i + n]) for i, n in enumerate([1, 5, 2, 30, 9, 1, 17, 3])] + ["x", "not blueship 3"]


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Hugging Face directory: a Qwen3 of 2 layers, a byte-level BPE that ends texts and pads on the left."""
    return write_qwen(tmp_path_factory.mktemp("qwen"), WORDS)


@pytest.fixture(params=["mean", "cls", "lasttoken", "qwen"])
def directory(request, small_base: Callable[..., Path], qwen: Path, tmp_path: Path) -> Path:
    if request.param != "qwen":
        return small_base(3, request.param)
    import_base(qwen, tmp_path / "imported", "lasttoken", MAX_TOKENS)
    return tmp_path / "imported"


def _by_hand(directory: Path, texts: list[str]) -> np.ndarray:
    """AutoModel and AutoTokenizer in one right-padded batch, pooled text by text."""
    from transformers import AutoModel, AutoTokenizer

    settings = json.loads((directory / "1_Pooling" / "config.json").read_text())
    longest = json.loads((directory / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="right")
    batch = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(directory).eval()(**batch).last_hidden_state
    vectors = []
    for state, mask in zip(states, batch["attention_mask"], strict=True):
        mine = state[: int(mask.sum())]
        vector = {"mean": mine.mean(0), "cls": mine[0], "lasttoken": mine[-1]}[settings["pooling_mode"]]
        vectors.append(vector / vector.norm())
    return torch.stack(vectors).numpy()


def test_vectors_equal_those_of_both_libraries(directory):
    from sentence_transformers import SentenceTransformer

    ours = Encoder.load(directory, device="cpu").encode(TEXTS, chunk_tokens=64)
    assert ours.shape == (len(TEXTS), 32)
    assert ours.dtype == np.float32
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-6
    theirs = SentenceTransformer(str(directory), device="cpu").encode(TEXTS)
    assert np.abs(ours - theirs).max() <= 1e-5
    assert np.abs(ours - _by_hand(directory, TEXTS)).max() <= 1e-5


def test_a_saved_directory_loads_as_itself(directory, tmp_path):
    encoder = Encoder.load(directory, device="cpu")
    encoder.prompts = {"query": "find: "}
    encoder.save(tmp_path / "again")
    again = Encoder.load(tmp_path / "again", device="cpu")
    assert (again.pooling, again.max_tokens, again.prompts) == (encoder.pooling, MAX_TOKENS, {"query": "find: "})
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_directories_that_sentence_transformers_writes_are_read(small_base, tmp_path):
    from sentence_transformers import SentenceTransformer

    for pooling in ("mean", "cls"):
        SentenceTransformer(str(small_base(3, pooling)), device="cpu").save(str(tmp_path / pooling))
        encoder = Encoder.load(tmp_path / pooling, device="cpu")
        assert (encoder.pooling, encoder.max_tokens) == (pooling, MAX_TOKENS)
        assert np.array_equal(encoder.encode(TEXTS), Encoder.load(small_base(3, pooling), device="cpu").encode(TEXTS))


def test_the_directory_is_the_portable_dialect(small_base):
    directory = small_base(3, "cls")
    assert {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modules.json",
        "sentence_bert_config.json", "1_Pooling/config.json", "2_Normalize/config.json",
        "config_sentence_transformers.json",
    }  # fmt: skip
    assert not [p for p in directory.rglob("*") if p.suffix in (".bin", ".pt", ".py")]
    read = {n: json.loads((directory / n).read_text()) for n in ("modules.json", "sentence_bert_config.json")}
    kinds = [(m["idx"], m["name"], m["path"], m["type"]) for m in read["modules.json"]]
    assert kinds == [
        (0, "0", "", "sentence_transformers.models.Transformer"),
        (1, "1", "1_Pooling", "sentence_transformers.models.Pooling"),
        (2, "2", "2_Normalize", "sentence_transformers.models.Normalize"),
    ]
    # releases before 5.4 fail on any further key here
    assert read["sentence_bert_config.json"] == {"max_seq_length": MAX_TOKENS, "do_lower_case": False}
    assert json.loads((directory / "1_Pooling/config.json").read_text()) == {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        "pooling_mode": "cls",
        "include_prompt": True,
    }
    settings = json.loads((directory / "config_sentence_transformers.json").read_text())
    assert set(settings) == {"__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name"}
    assert settings["similarity_fn_name"] == "cosine"


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 200))
def test_chunks_cover_every_index_once_within_the_budget(lengths, budget):
    chunks = length_chunks(lengths, budget)
    assert sorted(i for c in chunks for i in c) == list(range(len(lengths)))
    for chunk, after in itertools.zip_longest(chunks, chunks[1:]):
        sizes = [max(1, lengths[i]) for i in chunk]
        assert len(chunk) == 1 or len(chunk) * sizes[0] <= budget
        assert len(chunk) * sizes[0] - sum(sizes) <= budget // 16
        if after is not None:  # it is full, or the next text would bring too much padding
            sizes.append(max(1, lengths[after[0]]))
            assert len(sizes) * sizes[0] > budget or len(sizes) * sizes[0] - sum(sizes) > budget // 16
    flat = [lengths[i] for c in chunks for i in c]
    assert flat == sorted(lengths, reverse=True)
    assert [i for c in chunks for i in c] == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def test_rows_do_not_depend_on_how_they_are_cut(directory):
    encoder = Encoder.load(directory, device="cpu")
    sequences = encoder.tokenize(TEXTS)
    whole = embed(encoder.backbone, sequences, encoder.pooling, encoder.pad_id, 10**6)
    for chunk_tokens in (1, 24, 60, 200):
        part = embed(encoder.backbone, sequences, encoder.pooling, encoder.pad_id, chunk_tokens)
        assert (part - whole).abs().max() <= 1e-6
    alone = torch.cat([embed(encoder.backbone, [s], encoder.pooling, encoder.pad_id, 64) for s in sequences])
    assert (alone - whole).abs().max() <= 1e-6


def test_no_texts_give_no_rows_and_zero_gradients(small_base):
    encoder = Encoder.load(small_base(), device="cpu")
    assert encoder.encode([]).shape == (0, 32)
    vectors = embed(encoder.backbone, [], "mean", encoder.pad_id, 64)
    assert vectors.shape == (0, 32)
    vectors.sum().backward()  # a rank without rows still takes part in the sum over ranks
    used = {n: p.grad for n, p in encoder.backbone.named_parameters() if not n.startswith("pooler")}
    assert all(g is not None and not g.any() for g in used.values())


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_pooling_by_brute_force(pooling):
    hidden = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = [1, 7, 3, 2, 6]
    mask = torch.tensor([[int(t < n) for t in range(7)] for n in lengths])
    expected = []
    for row, n in zip(hidden, lengths, strict=True):
        vector = {"mean": row[:n].sum(0) / n, "cls": row[0], "lasttoken": row[n - 1]}[pooling]
        expected.append(vector / vector.norm())
    assert torch.allclose(pool(hidden, mask, pooling).double(), torch.stack(expected), atol=1e-6)


def test_texts_are_cut_special_tokens_included_and_prompts_stand_before_them(small_base):
    encoder = Encoder.load(small_base(), device="cpu")
    tokens = encoder.tokenize([" ".join(WORDS), "redcat"])
    assert len(tokens[0]) == MAX_TOKENS
    assert (tokens[0][0], tokens[0][-1]) == (encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id)
    assert tokens[1].dtype == np.int32
    assert np.array_equal(encoder.encode(["redcat"], prompt="old "), encoder.encode(["old redcat"]))


def test_loading_twice_gives_the_same_model_whatever_the_global_seed(small_base, tmp_path):
    """A pooler that is not in the file (many have none) must not differ from run to run."""
    base = _broken(small_base(), tmp_path / "base", _without("pooler."))
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(Encoder.load(base, device="cpu").backbone.state_dict())
        expected = torch.Generator().manual_seed(seed)
        assert torch.equal(torch.randn(3), torch.randn(3, generator=expected))  # and loading draws nothing from it
    assert {"pooler.dense.weight", "pooler.dense.bias"} <= states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_building_twice_gives_the_same_bytes_and_other_seeds_others(small_base, small_tokenizer, tmp_path):
    from boom_ray.base import build_base
    from boom_ray.config import BuildBase

    build = BuildBase(layers=2, hidden=32, heads=2, vocab=300, warm_steps=0, learning_rate=1e-3)
    for seed, same in ((3, True), (4, False)):
        build_base(build, small_tokenizer, tmp_path / str(seed), "mean", MAX_TOKENS, seed)
        weights = [(d / "model.safetensors").read_bytes() for d in (tmp_path / str(seed), small_base(3))]
        assert (weights[0] == weights[1]) == same


def test_a_base_is_imported_in_float32_within_its_positions(qwen, tmp_path):
    from safetensors import safe_open
    from transformers import AutoModel

    shutil.copytree(qwen, tmp_path / "half")
    AutoModel.from_pretrained(qwen, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    import_base(tmp_path / "half", tmp_path / "out", "lasttoken", 4096)
    encoder = Encoder.load(tmp_path / "out", device="cpu")
    assert (encoder.pooling, encoder.max_tokens) == ("lasttoken", 64)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.float32}  # noqa: SIM118
    import_base(tmp_path / "half", tmp_path / "plain", None, 10)
    plain = Encoder.load(tmp_path / "plain", device="cpu")
    assert (plain.pooling, plain.max_tokens) == ("mean", 10)


# What is refused


def _broken(source: Path, out: Path, change: Callable[[Path], Any]) -> Path:
    shutil.copytree(source, out)
    change(out)
    return out


def _edit(name: str, **values: Any) -> Callable[[Path], Any]:
    def change(directory: Path) -> None:
        file = directory / name
        content = {**json.loads(file.read_text()), **values}
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def _delete(*names: str) -> Callable[[Path], Any]:
    return lambda directory: [(directory / name).unlink() for name in names]


def _modules(*kinds: str) -> Callable[[Path], Any]:
    modules = [{"idx": i, "name": str(i), "path": f"{i}_{k}", "type": f"x.{k}"} for i, k in enumerate(kinds)]
    return lambda directory: (directory / "modules.json").write_text(json.dumps(modules))


def _write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).write_text(text)


def _truncate(name: str) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:-100])


def _without(*parts: str) -> Callable[[Path], Any]:
    """Leave tensors out of the file."""

    def change(directory: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(directory / "model.safetensors")
        kept = {name: t for name, t in tensors.items() if not any(part in name for part in parts)}
        assert len(kept) < len(tensors)
        save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})

    return change


REFUSED = {
    "a layer is absent": (_without("encoder.layer.1."), "the weights lack 16 tensors.*encoder.layer.1.attention"),
    "no tokenizer": (_delete("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
    "broken tokenizer": (_write("tokenizer.json", "{"), "cannot be loaded"),
    "no config": (_delete("config.json"), "holds no model"),
    "broken config": (_write("config.json", "{"), "cannot be loaded|holds no model"),
    "unknown architecture": (_edit("config.json", model_type="none_such"), "cannot be loaded|holds no model"),
    "no weights": (_delete("model.safetensors"), "holds no model"),
    "damaged weights": (_truncate("model.safetensors"), "holds no model"),
    "dense module": (_modules("Transformer", "Pooling", "Dense", "Normalize"), "lists Dense; supported modules are"),
    "custom module": (_modules("Transformer", "MyOwn"), "lists MyOwn; supported modules are"),
    "broken modules": (_write("modules.json", "["), "modules.json"),
    "modules of another shape": (_write("modules.json", '{"a": 1}'), "modules.json"),
    "no pooling file": (_delete("1_Pooling/config.json"), "1_Pooling/config.json"),
    "broken pooling file": (_write("1_Pooling/config.json", "{"), "1_Pooling/config.json"),
    "max pooling": (
        _edit("1_Pooling/config.json", pooling_mode_max_tokens=True, pooling_mode_mean_tokens=False),
        r"pooling \['max'\] is not supported",
    ),
    "two poolings": (_edit("1_Pooling/config.json", pooling_mode_cls_token=True), "is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_directory_that_cannot_be_used_is_refused_with_its_reason(case, small_base, tmp_path):
    change, told = REFUSED[case]
    with pytest.raises(BoomError, match=told) as caught:
        Encoder.load(_broken(small_base(), tmp_path / "base", change), device="cpu")
    assert str(tmp_path / "base") in str(caught.value)


def test_a_tokenizer_without_padding_is_refused(small_tokenizer, tmp_path):
    def change(directory: Path) -> None:
        _edit("tokenizer_config.json", pad_token=None)(directory)
        _edit("special_tokens_map.json", pad_token=None)(directory)

    with pytest.raises(BoomError, match="has no padding token"):
        load_tokenizer(_broken(small_tokenizer, tmp_path / "t", change))


def test_a_module_path_that_leaves_the_directory_is_not_followed(small_base, tmp_path):
    base = _broken(small_base(), tmp_path / "base", _modules("Transformer", "Pooling"))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text('{"pooling_mode": "cls"}')
    for path in ("../secret", str(tmp_path / "secret")):
        modules = [{"idx": 0, "name": "0", "path": path, "type": "x.Pooling"}]
        (base / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(BoomError, match="leaves the directory"):
            Encoder.load(base, device="cpu")


class _Canary:
    """Unpickling it makes a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.place),)


def test_pickled_weights_are_refused_and_not_opened(small_base, tmp_path):
    canary = tmp_path / "canary"
    base = _broken(small_base(), tmp_path / "base", _delete("model.safetensors"))
    (base / "pytorch_model.bin").write_bytes(pickle.dumps({"x": _Canary(canary)}))
    with pytest.raises(BoomError, match="holds no model"):
        Encoder.load(base, device="cpu")
    (base / "pytorch_model.bin").rename(base / "model.safetensors")
    with pytest.raises(BoomError, match="holds no model"):
        Encoder.load(base, device="cpu")
    assert not canary.exists()


@pytest.mark.parametrize("known", [True, False])
def test_custom_code_is_not_executed(small_base, tmp_path, known):
    canary = tmp_path / "canary"
    base = _broken(small_base(), tmp_path / "base", lambda _: None)
    (base / "evil.py").write_text(
        f"import os\nos.mkdir({str(canary)!r})\nEvilConfig = EvilModel = EvilTokenizer = None\n"
    )
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    _edit("config.json", auto_map=auto_map, **({} if known else {"model_type": "evil"}))(base)
    _edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]})(base)
    if known:  # a stock architecture is loaded as what it is
        assert np.array_equal(
            Encoder.load(base, device="cpu").encode(TEXTS), Encoder.load(small_base(), device="cpu").encode(TEXTS)
        )
    else:
        with pytest.raises(BoomError):
            Encoder.load(base, device="cpu")
    assert not canary.exists()


def test_a_base_that_is_not_there_is_named(tmp_path, monkeypatch):
    for name in (str(tmp_path / "none"), "./none", "~/none", "a/b/c"):
        with pytest.raises(BoomError, match="not a local directory"):
            resolve_base(name, None)
    assert resolve_base(str(tmp_path), None) == tmp_path
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BoomError, match="could not be fetched"):
        resolve_base("nobody/none-such-model", None)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_a_text_without_tokens_has_the_same_finite_vector_alone_and_among_others(qwen, pooling):
    encoder = Encoder.load(qwen, device="cpu")
    nothing, some = np.empty(0, np.int32), encoder.tokenize(["redcat blueship"])[0]
    alone = embed(encoder.backbone, [nothing], pooling, encoder.pad_id, 64)
    among = embed(encoder.backbone, [some, nothing], pooling, encoder.pad_id, 64)[1:]
    assert alone.isfinite().all()
    assert (alone - among).abs().max() <= 1e-6
