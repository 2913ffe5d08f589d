"""Small model directories to merge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

SHAPES = {
    "embeddings.word_embeddings.weight": (40, 16),
    "encoder.layer.0.attention.self.query.weight": (16, 16),
    "encoder.layer.0.output.dense.bias": (16,),
    "encoder.layer.1.attention.self.query.weight": (16, 16),
    "encoder.layer.2.attention.self.query.weight": (16, 16),
    "pooler.dense.weight": (16, 16),
}
POOLING = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
Make = Callable[..., Path]


def write_model(directory: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A sentence-transformers directory around the tensors."""
    directory.mkdir(parents=True)
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))
    (directory / "modules.json").write_text(json.dumps(MODULES))
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 16, "vocab_size": 40}))
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    return directory


def draw(seed: int, spread: float = 0.02, origin: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Tensors of SHAPES: normal, or near ``origin``."""
    rng = np.random.default_rng(seed)
    drawn = {name: (spread * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}
    return drawn if origin is None else {name: origin[name] + value for name, value in drawn.items()}


@pytest.fixture
def family(tmp_path: Path) -> tuple[list[Path], Path]:
    """Three members near one base, as directories."""
    origin = draw(0)
    base = write_model(tmp_path / "base", origin)
    return [write_model(tmp_path / f"member-{i}", draw(i + 1, 0.004, origin)) for i in range(3)], base
