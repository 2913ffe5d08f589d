"""The recipe's section ``update``: new data for a model that is published already."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from boom_ray.config.corpus import Frozen, Source

UpdateWeights = Literal["fixed", "mass", "searched", "ensemble"]


class Update(Frozen):
    """What ``boom-ray update`` does; ``boom-ray run`` does without it."""

    datasets: tuple[Source, ...] = Field(min_length=1, description="the new data, entries as in corpus.datasets")
    model: str | None = Field(
        None, description="a run directory (its newest version) or one version of it; default: the run of this recipe"
    )
    sets: tuple[str, ...] = Field((), description="folders of evaluation sets of the new domain, beside evaluate.sets")
    core: float = Field(0.4, ge=0, le=1, description="share of every old dataset in the new member's bag")
    init: Literal["base", "current"] = Field("base", description="what the new member starts from")
    weights: UpdateWeights = Field(
        "fixed",
        description="how the new member joins: with `share`, by rows behind each, searched on dev half A, or all "
        "members ever trained merged again, by their rows",
    )
    share: float = Field(0.5, gt=0, le=1, description="weights fixed: the new member's share")
    max_drift: float | None = Field(
        None,
        gt=0,
        le=2,
        description="bound on the drift of old dev texts, the mean of 1 - cosine: the merge weight is lowered to it",
    )
    probe: int = Field(512, ge=2, description="old dev texts that the bound is measured on, at most")
