"""Large batches in fixed memory: texts pass the backbone in length-sorted chunks, and the graphs of no more chunks are
kept than a budget allows; the others are computed again when their gradients are due (GradCache: Gao et al. 2021,
arXiv 2101.06983, with Chen et al. 2016, arXiv 1604.06174, for the part that fits).

Everything happens inside one graph: a chunk whose graph is not kept is one node of it, which computes the chunk again
when its gradient is due. So the loss of the whole batch has one backward pass, each parameter gets its gradient once,
and DeepSpeed sees one forward and one backward per step. The usual way, a backward pass per chunk, is silently wrong
under it at ZeRO 1 and 2. At ZeRO 3 parameters are elsewhere between layers, and torch's own checkpoint is the node: it
keeps the chunk's graph without its tensors, and those thousands of small pieces leave no room in one for the next
chunk's tensors: 384 pairs of MiniLM took 1.7 GB in place of 0.7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from boom_ray.config import Pooling, Train
from boom_ray.encoder import Encoder, chunk_budget, embed_chunk, length_chunks
from boom_ray.train import activations, dropout
from boom_ray.train.attention import Kernel, embed_packed, install, kernel_for, packed_chunks
from boom_ray.train.memory import return_freed
from boom_ray.train.meter import Passed

_TIDY = 4  # chunks computed again on a CPU between two returns of freed memory to the system


@dataclass(frozen=True)
class Budget:
    """How a batch passes the backbone.

    Attributes:
        chunk_tokens: tokens of one chunk at most, padding included.
        graph_tokens: tokens whose graphs are kept at most, padding included; None: all.
        in_step: each forward is an exchange between ranks (ZeRO 3), so all ranks run the same number of chunks, and
            compute the same ones again.
    """

    chunk_tokens: int
    graph_tokens: int | None = None
    in_step: bool = False


class BatchEncoder(torch.nn.Module):
    """The module that is trained: token sequences of a batch in, unit vectors out.

    Attributes:
        kernel: of attention over texts without padding (:mod:`boom_ray.train.attention`); None: they are padded.
        compute: what the layers compute in where that is not what the weights are in.
        passed: tells of the last batch.
    """

    passed: Passed

    def __init__(
        self, backbone: torch.nn.Module, pooling: Pooling, pad_id: int, budget: Budget, kernel: Kernel | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.pad_id = pad_id
        self.budget = budget
        self.kernel = kernel
        self.compute: torch.dtype | None = None

    def forward(self, sequences: Sequence[np.ndarray]) -> torch.Tensor:
        """Unit vectors [N, D] of N token sequences, in input order; equal texts are encoded once.

        A rank without texts encodes one padding token: no vectors, but a graph, so that its gradients are zeros and
        not missing.
        """
        texts, place = distinct(sequences)
        texts = texts or [np.array([self.pad_id])]
        device = next(self.backbone.parameters()).device
        lengths = np.array([max(1, len(text)) for text in texts])
        cut = length_chunks if self.kernel is None else packed_chunks
        chunks = cut(lengths, chunk_budget(self.budget.chunk_tokens, device))
        sizes = [int(len(c) * lengths[c[0]] if self.kernel is None else lengths[c].sum()) for c in chunks]
        self.passed = Passed(lengths, sum(sizes))
        again, extra = len(chunks) - kept_chunks(sizes, self.budget.graph_tokens), 0
        if self.budget.in_step:
            again, extra = _agree(again, len(chunks), device)
        groups = [[texts[i] for i in chunk] for chunk in chunks] + [[np.array([self.pad_id])]] * extra
        seeds = torch.randint(2**62, (len(groups),)).tolist()  # of each chunk's dropout, so that it can be drawn again
        again = again if torch.is_grad_enabled() else 0
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        parts = []
        for number, (group, seed) in enumerate(zip(groups, seeds, strict=True)):
            if number >= again:
                parts.append(self._embed(group, seed))
            elif self.budget.in_step:
                parts.append(checkpoint(self._embed, group, seed, use_reentrant=False, preserve_rng_state=False))
            else:
                tidy = device.type == "cpu" and number % _TIDY == 0
                parts.append(_ComputedAgain.apply(self._embed, group, seed, tidy, *trained))
        row = np.argsort(np.concatenate(chunks))[place]
        return torch.cat(parts).index_select(0, torch.from_numpy(row).to(device))

    def _embed(self, texts: Sequence[np.ndarray], seed: int) -> torch.Tensor:
        if self.training:
            torch.manual_seed(seed)
        device = next(self.backbone.parameters()).device.type
        with torch.autocast(device, dtype=self.compute, enabled=self.compute is not None):
            if self.kernel is None:
                return embed_chunk(self.backbone, texts, self.pooling, self.pad_id)
            return embed_packed(self.backbone, texts, self.pooling, self.pad_id, self.kernel)


class _ComputedAgain(torch.autograd.Function):
    """A chunk whose graph exists only while its gradient is taken; its inputs are the parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        embed: Callable[[Sequence[np.ndarray], int], torch.Tensor],
        texts: Sequence[np.ndarray],
        seed: int,
        tidy: bool,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        ctx.chunk, ctx.tidy, ctx.parameters = (embed, texts, seed), tidy, parameters
        return embed(texts, seed)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        embed, texts, seed = ctx.chunk
        with torch.enable_grad():
            vectors = embed(texts, seed)
        found = torch.autograd.grad(vectors, ctx.parameters, gradients, allow_unused=True)
        del vectors
        if ctx.tidy:
            return_freed()
        return None, None, None, None, *found


def batch_encoder(encoder: Encoder, train: Train) -> BatchEncoder:
    """What a recipe trains of an encoder: dropout and activations are fitted to a CPU, attention to a GPU."""
    dropout.fit(encoder.backbone)
    activations.fit(encoder.backbone)
    kernel = kernel_for(encoder.backbone, half=train.precision != "float32")
    if kernel is not None:
        install(encoder.backbone)
    budget = Budget(train.chunk_tokens, train.graph_tokens, in_step=train.zero_stage == 3 and dist.is_initialized())
    return BatchEncoder(encoder.backbone, encoder.pooling, encoder.pad_id, budget, kernel)


def distinct(sequences: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """The different sequences in the order of their first occurrence, and for each input the number of its own."""
    found: dict[bytes, int] = {}
    place = [found.setdefault(np.asarray(s, np.int64).tobytes(), len(found)) for s in sequences]
    first = {number: index for index, number in reversed(list(enumerate(place)))}
    return [sequences[first[number]] for number in range(len(first))], np.array(place, dtype=np.int64)


def kept_chunks(sizes: Sequence[int], graph_tokens: int | None) -> int:
    """How many of the last chunks keep their graphs: backward starts with them, so they are gone when others return."""
    if graph_tokens is None:
        return len(sizes)
    return int((np.cumsum(list(reversed(sizes))) <= graph_tokens).sum())


def _agree(again: int, count: int, device: torch.device) -> tuple[int, int]:
    """(chunks that all ranks compute again, chunks of nothing that this rank adds to have as many as the others)."""
    most = torch.tensor([again, count], device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    again, longest = most.tolist()
    return int(again), int(longest) - count
