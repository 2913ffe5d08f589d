"""An encoder: Hugging Face backbone + pooling + L2 normalisation, and the portable directory it lives in.

The directory is the sentence-transformers dialect that releases before and after 5.4, transformers, TEI and vLLM all
read: old module names, all six pooling booleans, no new keys, safetensors only. No custom code is ever executed.

The padding that a batch costs is decided here, once, for training, scoring and search: texts are sorted by length
and encoded in chunks of at most ``chunk_tokens`` padded tokens.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boom_ray.config import BoomError, Pooling

_POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_CPU_CHUNK_TOKENS = 2048
_SUPPORTED: tuple[Pooling, ...] = ("mean", "cls", "lasttoken")
_MODULES = ("Transformer", "Pooling", "Normalize")
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

    @classmethod
    def load(cls, directory: str | Path, device: str | None = None) -> Encoder:
        """Load a sentence-transformers or plain Hugging Face directory, in float32, safetensors only.

        Raises:
            BoomError: no config, tokenizer or safetensors weights; a module or pooling that we do not support; more
                tokens than embeddings.
        """
        directory = Path(directory)
        pooling, max_tokens = _read_modules(directory)
        tokenizer = load_tokenizer(directory)
        backbone = _load_backbone(directory)
        _check_vocabulary(directory, tokenizer, backbone)
        encoder = cls(backbone.eval(), tokenizer, pooling or "mean", max_tokens or position_limit(backbone, tokenizer))
        encoder.backbone.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if (directory / "config_sentence_transformers.json").is_file():
            encoder.prompts = _read_json(directory, "config_sentence_transformers.json").get("prompts") or {}
        return encoder

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (int32) of every text, special tokens included, cut at ``max_tokens``."""
        if not texts:
            return []
        batch = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, add_special_tokens=True)
        return [np.asarray(ids, dtype=np.int32) for ids in batch["input_ids"]]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, prompt: str = "", chunk_tokens: int = 16384) -> np.ndarray:
        """Unit vectors of ``texts``, float32 [N, D], rows in input order."""
        sequences = self.tokenize([prompt + text for text in texts])
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


def write_modules(directory: Path, pooling: Pooling, hidden: int, max_tokens: int, prompts: dict[str, str]) -> None:
    """The small files that make a Hugging Face directory a sentence-transformers one, in the portable dialect."""
    types = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (name, path, kind) in enumerate(types)
    ]
    flags = {flag: mode == pooling for mode, flag in _POOLING_FLAGS.items()}
    files: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": hidden,
            **flags,
            "pooling_mode": pooling,
            "include_prompt": True,
        },
        "2_Normalize/config.json": {},
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.3.0"},
            "model_type": "SentenceTransformer",
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")


def load_tokenizer(directory: str | Path) -> Any:
    """The directory's fast tokenizer. One without a padding token pads with its end-of-sequence token, as is usual for
    language models: attention never sees padding.

    Raises:
        BoomError: there is none, or it has neither token.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    known = ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json")
    if not any((directory / name).is_file() for name in known):
        raise BoomError(
            f"base {directory} has no tokenizer (no {', '.join(known[:3])}): copy the tokenizer's files into it."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises many types here; each means the same to the user
        raise BoomError(f"the tokenizer of {directory} cannot be loaded: {first_line(error)}") from None
    if not tokenizer.is_fast:
        raise BoomError(f"{directory} has no fast tokenizer (tokenizer.json), which serving tools need.")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BoomError(
                f"the tokenizer of {directory} has no padding token: set pad_token in tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_texts(tokenizer: Any, origin: Path) -> None:
    """Let a tokenizer end every text with its end-of-sequence token, in place and in the files that it saves.

    Raises:
        BoomError: it has none.
    """
    if tokenizer.eos_token_id is None:
        raise BoomError(
            f"base.append_eos: the tokenizer of {origin} has no end-of-sequence token: set eos_token in "
            f"tokenizer_config.json."
        )
    if tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:
        tokenizer.add_eos_token = True


def _load_backbone(directory: Path) -> Any:
    """The directory's Hugging Face model. A pooler that its file lacks is made up, the same in every run; no embedding
    depends on it, and it is saved with the rest. Any other tensor must be there."""
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
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


def _read_modules(directory: Path) -> tuple[Pooling | None, int | None]:
    """(pooling, max_tokens) as a sentence-transformers directory states them; (None, None) for a plain one."""
    modules = directory / "modules.json"
    if not modules.is_file():
        return None, None
    try:
        entries = {str(m["type"]).rsplit(".", 1)[-1]: str(m["path"]) for m in _read_json(directory, "modules.json")}
    except (TypeError, KeyError):
        raise BoomError(f"{modules} is no list of modules with a type and a path.") from None
    if unknown := [kind for kind in entries if kind not in _MODULES]:
        raise BoomError(f"{modules} lists {', '.join(unknown)}; supported modules are {', '.join(_MODULES)}.")
    pooling: Pooling | None = None
    if "Pooling" in entries:
        settings = _read_json(directory, f"{entries['Pooling']}/config.json")
        modes = [mode for mode, flag in _POOLING_FLAGS.items() if settings.get(flag)]
        modes = modes or [settings.get("pooling_mode", "mean")]
        if len(modes) != 1 or modes[0] not in _SUPPORTED:
            raise BoomError(f"{directory}: pooling {modes} is not supported; supported are {', '.join(_SUPPORTED)}.")
        pooling = modes[0]
    sizes = "sentence_bert_config.json"
    limit = _read_json(directory, sizes).get("max_seq_length") if (directory / sizes).is_file() else None
    return pooling, limit


def _read_json(directory: Path, name: str) -> Any:
    """A small file of a model directory. The directory is not trusted: a name that leads out of it is refused."""
    if os.path.normpath(name).startswith((os.pardir, os.sep)):
        raise BoomError(f"{directory}: '{name}' leaves the directory, so it is not read.")
    try:
        return json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BoomError(f"{directory / name} cannot be read: {first_line(error)}") from None


def position_limit(backbone: Any, tokenizer: Any) -> int:
    positions = getattr(backbone.config, "max_position_embeddings", None) or 512
    return int(min(positions - first_position(backbone.config), tokenizer.model_max_length))


def first_position(config: Any) -> int:
    """The position of a text's first token: some families count from the padding id on."""
    return config.pad_token_id + 1 if getattr(config, "model_type", "") in _POSITIONS_AFTER_PADDING else 0


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
