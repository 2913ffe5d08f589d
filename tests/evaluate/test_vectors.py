"""Vectors as mteb gets them: each text through the model once, tokens shared by models with one tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from boom_ray.encoder import Encoder
from boom_ray.evaluate.packing import pack
from boom_ray.evaluate.vectors import MtebEncoder, TokenCache, Vectors

Models = Callable[[int], Path]
TEXTS = [f"redcat {'bluecat ' * i}" for i in range(1, 26)]


def count_encoded(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counts: Counter[str] = Counter()
    original = encoder.encode

    def counting(texts: Any, **options: Any) -> np.ndarray:
        counts.update(options["prompt"] + text for text in texts)
        return original(texts, **options)

    monkeypatch.setattr(encoder, "encode", counting)
    return counts


def test_no_text_with_one_prompt_is_encoded_twice(make_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(make_model(0))
    plain = encoder.encode(TEXTS)
    counts = count_encoded(encoder, monkeypatch)
    source = Vectors(encoder, 1024)
    first = source([*TEXTS, *TEXTS[:3]], "")
    np.testing.assert_allclose(first[:25], plain, atol=1e-6)
    assert np.array_equal(first[:3], first[25:])
    assert np.array_equal(source(TEXTS[::-1], ""), first[:25][::-1])
    assert max(counts.values()) == 1
    assert not np.allclose(source(TEXTS, "oldsong "), first[:25])
    assert len(counts) == 50


def test_what_is_kept_is_bounded(make_model: Models) -> None:
    source = Vectors(Encoder.load(make_model(0)), 1024, limit=10 * 32 * 4)
    first = source(TEXTS, "")
    assert len(source) == 10
    np.testing.assert_allclose(source(TEXTS[::-1], "")[::-1], first, atol=1e-6)


def test_the_next_model_finds_the_tokens(make_model: Models) -> None:
    first, second, other = (Encoder.load(make_model(seed)) for seed in (0, 1, 2))
    other.max_tokens = 4
    cache, made = TokenCache(), Counter[str]()

    def counting(encoder: Encoder) -> Any:
        make = encoder._tokenize

        def tokenize(texts: Any) -> Any:
            made.update(texts)
            return make(texts)

        return tokenize

    plain = [encoder.tokenize(TEXTS) for encoder in (first, second, other)]
    for encoder in (first, second, other):
        encoder._tokenize = counting(encoder)  # type: ignore[method-assign]
        cache.serve(encoder)
    for encoder, tokens in zip((first, second, other), plain, strict=True):
        for ours, theirs in zip(encoder.tokenize([*TEXTS, TEXTS[0]]), [*tokens, tokens[0]], strict=True):
            assert np.array_equal(ours, theirs)
    assert set(made.values()) == {2}  # by the first, and by the one that cuts texts elsewhere
    full = TokenCache(limit=0)
    full.serve(first)
    assert [len(t) for t in first.tokenize(TEXTS)] == [len(t) for t in plain[0]]
    assert set(made.values()) == {3}
    first.tokenize(TEXTS)
    assert set(made.values()) == {4}


@pytest.fixture(params=["gelu", "relu"])
def two_alike(request: pytest.FixtureRequest, make_model: Models, tmp_path: Path) -> tuple[Encoder, Encoder]:
    """One encoder, loaded twice."""
    encoder = Encoder.load(make_model(0), device="cpu")
    encoder.backbone.config.hidden_act = request.param
    encoder.save(tmp_path)
    return Encoder.load(tmp_path, device="cpu"), Encoder.load(tmp_path, device="cpu")


def test_packed_layers_give_the_same_vectors(two_alike: tuple[Encoder, Encoder]) -> None:
    plain, packed = two_alike
    pack(packed.backbone)
    kinds = Counter(type(module).__name__ for module in packed.backbone.modules())
    assert kinds["Linear"] == 0
    assert kinds["PackedLinear"] == 2 * 6 + 1  # two layers, and the pooler
    np.testing.assert_allclose(packed.encode(TEXTS), plain.encode(TEXTS), atol=1e-6)


def test_bfloat16_products_stay_close_and_states_are_float32(two_alike: tuple[Encoder, Encoder]) -> None:
    plain, halved = two_alike
    pack(halved.backbone, "bfloat16")
    found, exact = halved.encode(TEXTS), plain.encode(TEXTS)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() < 0.05
    assert (found * exact).sum(axis=1).min() > 1 - 1e-3


def test_the_adapter_is_an_encoder_for_mteb(make_model: Models) -> None:
    from mteb.models import EncoderProtocol, SearchProtocol

    adapter = MtebEncoder(Encoder.load(make_model(0)), None, 1024)
    assert isinstance(adapter, EncoderProtocol)
    assert not isinstance(adapter, SearchProtocol)


def test_vectors_may_come_from_elsewhere(make_model: Models) -> None:
    asked: list[tuple[list[str], str]] = []

    def source(texts: Any, prompt: str) -> np.ndarray:
        asked.append((list(texts), prompt))
        return np.ones((len(texts), 32), np.float32)

    adapter = MtebEncoder(Encoder.load(make_model(0)), None, 1024, "default ", source)
    task = SimpleNamespace(name="t", type="STS")
    found = adapter.encode(SimpleNamespace(dataset={"text": TEXTS}), task_metadata=task)
    assert found.shape == (25, 32)
    assert asked == [(TEXTS, "default ")]
