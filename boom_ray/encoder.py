"""An encoder: Hugging Face backbone + pooling + L2 normalisation, and the portable directory it lives in.

The directory is the sentence-transformers dialect that releases before and after 5.4, transformers, TEI and vLLM all
read: old module names, all six pooling booleans, no new keys, safetensors only. No custom code is ever executed.

The padding that a batch costs is decided here, once, for training, scoring and search: texts are sorted by length
and encoded in chunks of at most ``chunk_tokens`` padded tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boom_ray.config import BoomError, Pooling
from boom_ray.model_files import check_weights, first_line, load_tokenizer, read_json, read_modules, write_modules
from boom_ray.stores.mirrors import fetch

Tokens = list[np.ndarray]
_CPU_CHUNK_TOKENS = 2048
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")


def length_chunks(lengths: Sequence[int] | np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
    """Cut texts, longest first, into chunks whose padded size (count x longest) is at most ``chunk_tokens``.

    A chunk also ends where more than a sixteenth of the budget would be padding: a further pass costs less. In batches
    of 64 rows of 19 datasets, cut at 2,048 tokens, that leaves 11 % padding of 26 %. A text longer than the budget gets
    a chunk of its own. Ties keep their order, so the cut is deterministic.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    sizes = np.maximum(1, np.asarray(lengths)[order]).tolist()
    chunks, start, padding = [], 0, 0
    for place, size in enumerate(sizes):
        padding += sizes[start] - size
        if padding > chunk_tokens // 16 or (place > start and (place - start + 1) * sizes[start] > chunk_tokens):
            chunks.append(order[start:place])
            start, padding = place, 0
    return [*chunks, order[start:]] if sizes else []


def chunk_budget(chunk_tokens: int, device: torch.device) -> int:
    """Padded tokens per forward pass on a device: what is asked for, on a CPU never more than fit its caches.

    Measured on one core: 16384 instead of 2048 took 1.4 to 2 times as long, in scoring with all-MiniLM-L6-v2 as in
    training 3 layers of 128.
    """
    return min(chunk_tokens, _CPU_CHUNK_TOKENS) if device.type == "cpu" else chunk_tokens


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Token states [B, T, D] and right-padded mask [B, T] to unit vectors [B, D], in float32 at least."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        vectors = (hidden * weights).sum(1, dtype=wide) / mask.sum(1, keepdim=True).clamp(min=1)
    elif pooling == "cls":
        vectors = hidden[:, 0]
    else:
        vectors = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    return torch.nn.functional.normalize(vectors.to(wide), dim=-1)


def embed(
    backbone: torch.nn.Module, sequences: Sequence[np.ndarray], pooling: str, pad_id: int, chunk_tokens: int
) -> torch.Tensor:
    """Unit vectors [N, D] of N token sequences, in input order; differentiable unless grad is off."""
    if not sequences:
        return embed(backbone, [np.array([pad_id])], pooling, pad_id, chunk_tokens)[:0]
    device = next(backbone.parameters()).device
    chunks = length_chunks([len(s) for s in sequences], chunk_budget(chunk_tokens, device))
    parts = [embed_chunk(backbone, [sequences[i] for i in chunk], pooling, pad_id) for chunk in chunks]
    return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(chunks))).to(device)]


def embed_chunk(backbone: torch.nn.Module, sequences: Sequence[np.ndarray], pooling: str, pad_id: int) -> torch.Tensor:
    """Unit vectors [N, D] of N sequences in one forward pass, padded to the longest."""
    width = max(1, *(len(tokens) for tokens in sequences))
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=np.int64)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = tokens
        mask[row, : max(1, len(tokens))] = 1  # a text without tokens is read as one padding token
    device = next(backbone.parameters()).device
    attention = torch.from_numpy(mask).to(device)
    told = None if mask.all() else attention  # without padding, attention has no mask to add
    hidden = backbone(input_ids=torch.from_numpy(ids).to(device), attention_mask=told).last_hidden_state
    return pool(hidden, attention, pooling)


class Encoder:
    """A loaded encoder: ``backbone`` is a plain Hugging Face model, the rest is in the directory's small files."""

    def __init__(self, backbone: Any, tokenizer: Any, pooling: Pooling, max_tokens: int) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_tokens = max_tokens
        self.prompts: dict[str, str] = {}
        self.remember: Callable[[Sequence[str], Callable[[Sequence[str]], Tokens]], Tokens] | None = None

    @classmethod
    def load(cls, directory: str | Path, device: str | None = None) -> Encoder:
        """Load a sentence-transformers or plain Hugging Face directory, in float32, safetensors only.

        Raises:
            BoomError: no config, tokenizer or safetensors weights; a module or pooling that we do not support; more
                tokens than embeddings.
        """
        directory = fetch(directory)
        pooling, max_tokens = read_modules(directory)
        tokenizer = load_tokenizer(directory)
        backbone = _load_backbone(directory)
        _check_vocabulary(directory, tokenizer, backbone)
        encoder = cls(backbone.eval(), tokenizer, pooling or "mean", max_tokens or position_limit(backbone, tokenizer))
        encoder.backbone.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if (directory / "config_sentence_transformers.json").is_file():
            encoder.prompts = read_json(directory, "config_sentence_transformers.json").get("prompts") or {}
        return encoder

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Token ids (int32) of every text, special tokens included, cut at ``max_tokens``; ``remember``, where it is
        set, is asked first and given the means to make them."""
        return self.remember(texts, self._tokenize) if self.remember else self._tokenize(texts)

    def _tokenize(self, texts: Sequence[str]) -> Tokens:
        if not texts:
            return []
        batch = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, add_special_tokens=True)
        return [np.asarray(ids, dtype=np.int32) for ids in batch["input_ids"]]

    def encode(self, texts: Sequence[str], *, prompt: str = "", chunk_tokens: int = 16384) -> np.ndarray:
        """Unit vectors of ``texts``, float32 [N, D], rows in input order."""
        return self.encode_tokens(self.tokenize([prompt + text for text in texts]), chunk_tokens)

    @torch.inference_mode()
    def encode_tokens(self, sequences: Sequence[np.ndarray], chunk_tokens: int = 16384) -> np.ndarray:
        """Unit vectors, float32 [N, D], of what :meth:`tokenize` returned."""
        if not sequences:
            return np.zeros((0, self.backbone.config.hidden_size), dtype=np.float32)
        return embed(self.backbone, sequences, self.pooling, self.pad_id, chunk_tokens).cpu().numpy()

    def save(self, directory: str | Path) -> None:
        """Write the portable directory: weights, tokenizer, pooling and module list."""
        directory = Path(directory)
        self.save_description(directory)
        self.backbone.save_pretrained(directory, max_shard_size="4GB")

    def save_description(self, directory: Path) -> None:
        """Write everything but the weights, which are someone else's to bring, in float32."""
        directory.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self.backbone.config)
        config.architectures, config.dtype = [type(self.backbone).__name__], "float32"
        config.save_pretrained(directory)
        self.tokenizer.model_max_length = self.max_tokens
        self.tokenizer.save_pretrained(directory)
        write_modules(directory, self.pooling, int(self.backbone.config.hidden_size), self.max_tokens, self.prompts)


def _load_backbone(directory: Path) -> Any:
    """The directory's Hugging Face model. A pooler that its file lacks is made up, the same in every run; no embedding
    depends on it, and it is saved with the rest. Any other tensor must be there."""
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    check_weights(directory)
    options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            backbone, found = AutoModel.from_pretrained(directory, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BoomError(f"{directory} holds no model that can be loaded: {first_line(error)}") from None
    if absent := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise BoomError(
            f"{directory}: the weights lack {len(absent)} tensors of the model that config.json describes, "
            f"{absent[0]} among them. They belong to another model or are incomplete."
        )
    return backbone


def _check_vocabulary(directory: Path, tokenizer: Any, backbone: Any) -> None:
    highest = max(tokenizer.get_vocab().values())
    rows = backbone.get_input_embeddings().num_embeddings
    if highest >= rows:
        raise BoomError(
            f"{directory}: the tokenizer has ids up to {highest}, but the model has embeddings for {rows} tokens. "
            f"Their files belong to two models: take the tokenizer that the model was trained with."
        )


def position_limit(backbone: Any, tokenizer: Any) -> int:
    positions = getattr(backbone.config, "max_position_embeddings", None) or 512
    return int(min(positions - first_position(backbone.config), tokenizer.model_max_length))


def first_position(config: Any) -> int:
    """The position of a text's first token: some families count from the padding id on."""
    return config.pad_token_id + 1 if getattr(config, "model_type", "") in _POSITIONS_AFTER_PADDING else 0
