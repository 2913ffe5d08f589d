"""The part of the recipe that says how sampling ratios are searched (``boom-ray search ratios``)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from boom_ray.config.corpus import Frozen

RATIO_STEP = 1e-4  # ratios that are closer than this are the same


class RatioSearch(Frozen):
    """Which sets of ratios are tried, with how much training. No run of the recipe depends on it."""

    ratios: tuple[float, ...] = Field(
        (0.2, 0.4, 0.6, 0.8, 1.0), min_length=1, description="candidates: shares of every dataset, above 0 to 1"
    )
    members: tuple[int, int] = Field((2, 5), description="least and most members of a set")
    copies: int = Field(1, ge=1, le=99, description="members of one ratio in a set at most, each with its own draw")
    trials: int = Field(16, ge=1, description="sets that are tried; where there are fewer, all of them")
    round: int = Field(4, ge=1, description="trials asked and told together: no result depends on which ends first")
    rungs: int = Field(3, ge=1, description="lengths of training, each eta times the one before; 1: all to the end")
    eta: int = Field(3, ge=2, description="one of so many trials of a rung is trained on to the next")
    weights: Literal["ratio", "uniform"] = Field("ratio", description="merge weights of the members of a set")
    budget_seconds: float | None = Field(
        None, gt=0, description="device-seconds of all training and judging together; default: as many as it takes"
    )

    @field_validator("ratios")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in value:
            if not RATIO_STEP <= ratio <= 1:
                raise ValueError(f"a ratio is a share of each dataset, from {RATIO_STEP} to 1; got {ratio}")
        if len({round(ratio / RATIO_STEP) for ratio in value}) < len(value):
            raise ValueError(f"a ratio stands twice in {list(value)}; copies says how often one may be used")
        return value

    @model_validator(mode="after")
    def _fits(self) -> RatioSearch:
        low, high = self.members
        if not 1 <= low <= high:
            raise ValueError(f"members is [least, most] with 1 <= least <= most; got {list(self.members)}")
        most = len(self.ratios) * self.copies
        if high > most:
            raise ValueError(
                f"members goes to {high}, but {len(self.ratios)} ratios with {self.copies} "
                f"{'copy' if self.copies == 1 else 'copies'} each make {most} members; lower members or raise copies"
            )
        return self
