"""Memory of a training step: what is said when it runs out, and freed memory that goes back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from boom_ray.config import BoomError
from boom_ray.data.batches import TrainBatch

_ON_CPU = "DefaultCPUAllocator"  # torch raises a plain RuntimeError there


@contextmanager
def told(name: str, batch: TrainBatch) -> Iterator[None]:
    """Where a device or its host has no memory left for a step of member ``name``, that is a mistake of the recipe.

    Raises:
        BoomError: names member, step, dataset and the size of the batch.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not ran_out(error):
            raise
        longest = max((len(text) for text in (*batch.queries, *batch.candidates)), default=0)
        raise BoomError(
            f"{name}, step {batch.step}, dataset {batch.dataset}: out of memory with {batch.texts} texts of "
            f"{batch.tokens} tokens on this worker, the longest of {longest}. Lower train.graph_tokens (0 takes "
            f"least), then train.chunk_tokens; or set train.gradient_checkpointing, train.offload or a higher "
            f"train.zero_stage; or lower base.max_tokens. ({str(error).strip().splitlines()[0]})"
        ) from error


def ran_out(error: RuntimeError) -> bool:
    """Whether torch could not allocate, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or _ON_CPU in str(error)


def return_freed() -> None:
    """Give freed pages of the C heap back to the system, where its library can (glibc).

    Tensors of ever new sizes leave holes that the next ones do not fit: without this the peak of a step grows with the
    number of its chunks.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
