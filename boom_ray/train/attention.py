"""Texts of a chunk without padding: one after another in one row, each attending to itself alone.

Where a GPU has a kernel for it (flash-attn, else torch's own), nothing is computed for padding and no mask is built. A
kernel is told where texts end and how far a token sees; everything else of the backbone works token by token, but for
positions, which restart with each text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from boom_ray.encoder import first_position

NAME = "boom_ray_packed"
FAMILIES = ("bert", "modernbert", "qwen3", "roberta", "xlm-roberta")  # whose attention takes its part from here


@dataclass(frozen=True)
class Packing:
    """Where the texts of a row end, and the kernel that keeps them apart.

    Attributes:
        ends: int32 [N + 1], of the tokens before each text and of all.
        longest: tokens of the longest text.
    """

    ends: torch.Tensor
    longest: int
    kernel: Kernel


# (query [T, H, D], key [T, K, D], value [T, K, D], packing, (tokens seen before, after; -1: all), scale) -> [T, H, D]
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Packing, tuple[int, int], float], torch.Tensor]


def kernel_for(backbone: torch.nn.Module, half: bool) -> Kernel | None:
    """The kernel that fits a backbone and its device; None: texts are padded.

    Kernels compute in 16 bits, on NVIDIA GPUs from Ampere on; torch's has no dropout.
    """
    device, config = next(backbone.parameters()).device, _config(backbone)
    if device.type != "cuda" or not half or config.model_type not in FAMILIES:
        return None
    if torch.cuda.get_device_capability(device) < (8, 0) or _dropout(config):
        return None
    try:
        import flash_attn  # noqa: F401  (an extra that has to be built)
    except ImportError:
        return torch_kernel
    return flash_kernel


def install(backbone: torch.nn.Module) -> None:
    """Let a backbone's attention take packed texts, in place; padded ones it takes as before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    _config(backbone)._attn_implementation = NAME


def packed_chunks(lengths: Sequence[int] | np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
    """Cut texts, longest first, into chunks of at most ``chunk_tokens`` tokens; a longer text gets one of its own."""
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    chunks, start, room = [], 0, chunk_tokens
    for place, length in enumerate(lengths[order]):
        if length > room and place > start:
            chunks.append(order[start:place])
            start, room = place, chunk_tokens
        room -= length
    return [*chunks, order[start:]] if len(order) else []


def embed_packed(
    backbone: torch.nn.Module, sequences: Sequence[np.ndarray], pooling: str, pad_id: int, kernel: Kernel
) -> torch.Tensor:
    """Unit vectors [N, D] of N sequences in one forward pass without padding; see :func:`install`."""
    texts = [text if len(text) else np.array([pad_id]) for text in sequences]  # one without tokens is read as padding
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    ids, first = np.concatenate(texts).astype(np.int64), first_position(_config(backbone))
    positions = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths) + first
    if first:
        positions[ids == pad_id] = pad_id  # families that count from the padding id give it that position
    device = next(backbone.parameters()).device
    packing = Packing(torch.from_numpy(ends.astype(np.int32)).to(device), int(lengths.max()), kernel)
    hidden = backbone(
        input_ids=torch.from_numpy(ids)[None].to(device),
        position_ids=torch.from_numpy(positions)[None].to(device),
        # a mask of four dimensions is handed on as it is: none is built for all pairs of tokens of the row
        attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),
        packing=packing,
    ).last_hidden_state[0]
    return _pool(hidden, packing, pooling)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by the interface of transformers: query [1, H, T, D], key and value [1, K, T, D] to [1, T, H, D]."""
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    kind = torch.get_autocast_dtype(value.device.type) if torch.is_autocast_enabled(value.device.type) else value.dtype
    query, key, value = (part[0].transpose(0, 1).to(kind) for part in (query, key, value))
    window = options.get("sliding_window")
    before = -1 if window is None else window - 1  # transformers counts the token itself
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packing.kernel(query, key, value, packing, (before, 0 if causal else before), scale)[None], None


def flash_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    window: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """The kernel of the package flash-attn."""
    from flash_attn import flash_attn_varlen_func

    ends, longest = packing.ends, packing.longest
    return flash_attn_varlen_func(
        query, key, value, ends, ends, longest, longest, softmax_scale=scale, causal=window[1] == 0, window_size=window
    )


def torch_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    window: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """Torch's own."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = packing.ends, packing.longest
    grouped = query.shape[1] != key.shape[1]
    attended = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scale, window_size=window, enable_gqa=grouped
    )
    assert isinstance(attended, torch.Tensor)  # nothing else was asked for
    return attended


def _pool(hidden: torch.Tensor, packing: Packing, pooling: str) -> torch.Tensor:
    """Token states [T, D] of packed texts to unit vectors [N, D], in float32 at least."""
    ends = packing.ends.long()
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if pooling == "mean":
        vectors = torch.segment_reduce(hidden.to(wide), "mean", lengths=ends.diff(), axis=0)
    else:
        vectors = hidden[ends[:-1] if pooling == "cls" else ends[1:] - 1]
    return torch.nn.functional.normalize(vectors.to(wide), dim=-1)


def _dropout(config: Any) -> float:
    return getattr(config, "attention_probs_dropout_prob", None) or getattr(config, "attention_dropout", None) or 0.0


def _config(backbone: torch.nn.Module) -> Any:
    return backbone.config
