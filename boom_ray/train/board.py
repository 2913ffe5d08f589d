"""A member's steps as TensorBoard event files: ``tensorboard --logdir RUN/scratch/tensorboard``."""

from __future__ import annotations

from pathlib import Path

from boom_ray.train.meter import StepRecord

_FLUSH_SECONDS = 10


class Board:
    """Event files below ``folder``; what an earlier run wrote from step ``start`` on is hidden."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start or None, flush_secs=_FLUSH_SECONDS)

    def __call__(self, record: StepRecord) -> None:
        for tag, value in scalars(record).items():
            self._writer.add_scalar(tag, value, record.step)

    def close(self) -> None:
        self._writer.close()


def scalars(record: StepRecord) -> dict[str, float]:
    """A step's values by tag; one that is not known is left out."""
    found = {
        "loss/all": record.loss,
        f"loss_by_dataset/{record.dataset}": record.loss,
        "optimizer/grad_norm": record.grad_norm,
        "optimizer/learning_rate": record.learning_rate,
        **{f"speed/{name}": value for name, value in record.rates.items()},
        "speed/mfu": record.mfu,
        "memory/peak_gib": record.memory / 2**30,
    }
    return {tag: value for tag, value in found.items() if value is not None}
