"""What a training step took: time, waiting for data, tokens with and without padding, model FLOPs, memory."""

from __future__ import annotations

import dataclasses
import re
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from boom_ray.data.batches import TrainBatch, run_digest
from boom_ray.train.gather import GlobalRows

_CURVE_POINTS = 300  # of a member's loss that its manifest keeps
_DATASET_POINTS = 60  # of one dataset's

# Dense 16-bit FLOP/s of one device in TFLOP/s, by the makers' data sheets; the first entry whose words are all in the
# device's name counts.
_PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.5,
    "GH200": 989.5,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.5,
    "H800": 989.5,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "V100": 125.0,
    "T4": 65.0,
}


class Passed(NamedTuple):
    """What one batch puts through the backbone, equal texts once and nothing twice: int64 [N] lengths of the texts, and
    their tokens with padding."""

    lengths: np.ndarray
    padded: int


@dataclass(frozen=True)
class StepRecord:
    """One global step as it is logged.

    ``loss`` is that of the whole batch before the update and ``grad_norm`` that before clipping, None where there was
    no update (gradients are still gathered, or float16 overflowed); rows, texts and tokens are of all ranks, and
    ``digest`` names the rows in their order: these do not depend on the number of ranks. The others are this rank's:
    ``seconds`` since the last step ended, of which it ``waited`` for the feed; tokens ``encoded`` (equal texts once)
    and with their padding; model FLOPs, and their share of the device's peak where that is known; peak bytes of memory
    so far, allocated on a GPU, resident on a CPU.
    """

    step: int
    dataset: str
    loss: float
    grad_norm: float | None
    learning_rate: float
    rows: int
    texts: int
    tokens: int
    digest: str
    seconds: float
    waited: float
    encoded: int
    padded: int
    flops: float
    mfu: float | None
    memory: int

    @property
    def rates(self) -> dict[str, float]:
        """texts and tokens per second, shares of padding and of waiting (0 to 1)."""
        return rates([self])

    def line(self) -> dict[str, Any]:
        """The record and its rates, as the step log has them."""
        return {**dataclasses.asdict(self), **self.rates}

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> StepRecord:
        """A record out of the step log."""
        return cls(**{field.name: line[field.name] for field in dataclasses.fields(cls)})


def rates(records: Sequence[StepRecord]) -> dict[str, float]:
    """What :attr:`StepRecord.rates` says, over several steps."""
    seconds = max(sum(r.seconds for r in records), 1e-9)
    padded = max(1, sum(r.padded for r in records))
    return {
        "texts_per_second": sum(r.texts for r in records) / seconds,
        "tokens_per_second": sum(r.tokens for r in records) / seconds,
        "padding_share": 1 - sum(r.encoded for r in records) / padded,
        "stall_share": sum(r.waited for r in records) / seconds,
    }


@dataclass(frozen=True)
class FlopRule:
    """Model FLOPs of a forward and a backward pass over texts: what the mathematics needs, without padding and without
    what is computed again.

    Attributes:
        per_token: 2 per weight of a linear layer forward, 2 backward, 2 more where the weight is trained.
        width: heads times the size of a head; a pair of tokens in attention takes 12 * width in every layer
            (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
        spans: by layer, the tokens that one token sees at most.
        causal: a token sees those before it only, half of a text on average.
    """

    per_token: int
    width: int
    spans: tuple[float, ...]
    causal: bool

    @classmethod
    def of(cls, backbone: Any) -> FlopRule:
        """Of a Hugging Face backbone. Sizes are read off its layers, because ZeRO 3 leaves parameters empty."""
        config = backbone.config
        linear = [
            (module.in_features * module.out_features, module.weight.requires_grad)
            for name, module in backbone.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.startswith("pooler.")
        ]
        causal = any(getattr(module, "is_causal", False) for module in backbone.modules())
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        window = getattr(config, "sliding_window", None) or float("inf")
        near = window if causal else 2 * window + 1
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            per_token=sum(size * (6 if trained else 4) for size, trained in linear),
            width=config.num_attention_heads * head,
            spans=tuple(near if kind == "sliding_attention" else float("inf") for kind in kinds),
            causal=causal,
        )

    def __call__(self, lengths: np.ndarray) -> float:
        seen = lengths / 2 if self.causal else lengths
        pairs = sum(float((lengths * np.minimum(seen, span)).sum()) for span in self.spans)
        return float(self.per_token * lengths.sum() + 12 * self.width * pairs)


def peak_flops(device: torch.device) -> float | None:
    """Dense 16-bit FLOP/s of a device by its data sheet; None where there is none: a CPU, or a GPU not in the table."""
    if device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float | None:
    """The same by the name that the driver gives to the device."""
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    return next((1e12 * peak for key, peak in _PEAK_TFLOPS.items() if words.issuperset(key.split())), None)


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Meter:
    """Times the steps of a loop; ``model`` is a :class:`boom_ray.train.cache.BatchEncoder` or its wrapping."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model: Any = model
        self._device = next(model.parameters()).device
        self._flops = FlopRule.of(self._model.backbone)
        self._peak = peak_flops(self._device)
        self._waited = 0.0
        self._last = time.monotonic()

    def fed(self, batches: Iterable[TrainBatch]) -> Iterator[TrainBatch]:
        """The batches; how long each is waited for is noted."""
        source = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(source, None)
            self._waited = time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def record(
        self, batch: TrainBatch, rows: GlobalRows, loss: float, grad_norm: float | None, learning_rate: float
    ) -> StepRecord:
        """The step that ends now; the clock of the next one starts."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        passed: Passed = self._model.passed
        flops, (texts, tokens) = self._flops(passed.lengths), rows.size
        return StepRecord(
            step=batch.step,
            dataset=batch.dataset,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            rows=batch.global_rows,
            texts=texts,
            tokens=tokens,
            digest=rows.digest,
            seconds=seconds,
            waited=self._waited,
            encoded=int(passed.lengths.sum()),
            padded=passed.padded,
            flops=flops,
            mfu=flops / seconds / self._peak if self._peak else None,
            memory=peak_memory(self._device),
        )


def summarise(records: Sequence[StepRecord]) -> dict[str, Any]:
    """What a manifest keeps of a member's steps.

    Totals; ``order``, a digest of the rows of all steps; ``losses``, the loss curve evenly thinned; ``measured``, the
    rates of all steps but the first, which also warms up; ``datasets``, per dataset its steps, rows and loss curve.
    """
    return {
        "steps": len(records),
        "rows": sum(r.rows for r in records),
        "texts": sum(r.texts for r in records),
        "tokens": sum(r.tokens for r in records),
        "order": run_digest(r.digest for r in records),
        "losses": _curve(records, _CURVE_POINTS),
        "measured": _measured(records[1:] or records),
        "datasets": {
            name: {"steps": len(own), "rows": sum(r.rows for r in own), "losses": _curve(own, _DATASET_POINTS)}
            for name, own in _by_dataset(records).items()
        },
    }


def _measured(records: Sequence[StepRecord]) -> dict[str, float | None]:
    """Over the steps: rates, seconds of a step, FLOP/s and their share of the peak, gradient norm, memory."""
    if not records:
        return {}
    seconds = max(sum(r.seconds for r in records), 1e-9)
    shares = [r.mfu * r.seconds for r in records if r.mfu is not None]
    norms = [r.grad_norm for r in records if r.grad_norm is not None]
    return {
        **rates(records),
        "step_seconds": seconds / len(records),
        "flops_per_second": sum(r.flops for r in records) / seconds,
        "mfu": sum(shares) / seconds if shares else None,
        "grad_norm": float(np.median(norms)) if norms else None,
        "memory": max(r.memory for r in records),
    }


def _by_dataset(records: Sequence[StepRecord]) -> dict[str, list[StepRecord]]:
    found: dict[str, list[StepRecord]] = {}
    for record in records:
        found.setdefault(record.dataset, []).append(record)
    return dict(sorted(found.items()))


def _curve(records: Sequence[StepRecord], points: int) -> list[list[float]]:
    every = max(1, len(records) // points)
    return [[r.step, round(r.loss, 5)] for r in records[::every]]
