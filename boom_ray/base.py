"""The base that all members start from: fetched, imported into the portable directory, or built from a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from boom_ray.config import BoomError, BuildBase, Pooling
from boom_ray.encoder import Encoder, position_limit
from boom_ray.model_files import end_texts, first_line, load_tokenizer


def resolve_base(model: str, revision: str | None) -> Path:
    """The local directory of a base: itself, or the snapshot of a Hugging Face name (safetensors and small files).

    Raises:
        BoomError: neither a directory nor a name that can be fetched.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # network, authentication, unknown name: the hub's own first line says which
        raise BoomError(
            f"base.model {model!r} is not a local directory and could not be fetched from the Hugging Face hub "
            f"({first_line(error)}). Download it once, or set base.model to a local directory."
        ) from None


def import_base(
    source: Path,
    out: Path,
    pooling: Pooling | None,
    max_tokens: int,
    append_eos: bool = False,
    layers: int | None = None,
) -> None:
    """Write a base checkpoint as a portable directory in float32, cut behind its first ``layers`` layers where that is
    asked for; its tokenizer ends texts where that is.

    Raises:
        BoomError: see :meth:`Encoder.load`, :func:`keep_layers` and :func:`boom_ray.model_files.end_texts`.
    """
    encoder = Encoder.load(source, device="cpu")
    if layers is not None:
        keep_layers(encoder.backbone, layers, source)
    if append_eos:
        end_texts(encoder.tokenizer, source)
    encoder.pooling = pooling or encoder.pooling
    encoder.max_tokens = min(max_tokens, position_limit(encoder.backbone, encoder.tokenizer))
    encoder.save(out)


def keep_layers(backbone: Any, layers: int, model: str | Path) -> None:
    """Cut a backbone (in place) behind its first ``layers`` transformer layers.

    Raises:
        BoomError: it has fewer, or they are not one list of modules.
    """
    config = backbone.config
    stacks = [
        m for m in backbone.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == config.num_hidden_layers
    ]
    if layers > config.num_hidden_layers:
        raise BoomError(f"base.layers is {layers}, but {model} has {config.num_hidden_layers} layers. Lower it.")
    if len(stacks) != 1:
        raise BoomError(
            f"{model} has no single list of {config.num_hidden_layers} layers to cut. Leave out base.layers."
        )
    del stacks[0][layers:]
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def build_base(build: BuildBase, tokenizer_dir: Path, out: Path, pooling: Pooling, max_tokens: int, seed: int) -> None:
    """A BERT-shaped encoder with random weights around a tokenizer: a base that needs no download."""
    from transformers import BertConfig, BertModel

    tokenizer = load_tokenizer(tokenizer_dir)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=build.hidden,
        num_hidden_layers=build.layers,
        num_attention_heads=build.heads,
        intermediate_size=4 * build.hidden,
        max_position_embeddings=max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = BertModel(config)  # with its unused pooler, so that base and members have the same tensors
    Encoder(backbone, tokenizer, pooling, max_tokens).save(out)
