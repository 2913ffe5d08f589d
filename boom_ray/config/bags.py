"""The recipe's section ``bags``: what each member sees; and in which order and how often it may see it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, field_validator, model_validator

from boom_ray.config.corpus import Frozen

BY_RATIO = ("subset", "bootstrap", "partition")  # kinds that make a member of each ratio
ScheduleName = Literal["batch_shuffle", "dataset_sequential", "task_sequential", "two_stage", "example_shuffle"]


def _whole(value: float) -> int | float:
    """A whole number stays one, so that no identity depends on how it is written."""
    return int(value) if value == int(value) else value


def _as_it_is(value: float) -> int | float:
    return value


Passes = Annotated[float, Field(gt=0), AfterValidator(_whole), PlainSerializer(_as_it_is)]


class Bags(Frozen):
    """What each member sees: one member per ratio, or one per dataset, task type or named group."""

    kind: Literal["subset", "bootstrap", "partition", "dataset", "task_type", "groups"] = Field(
        "subset",
        description="subset: without replacement; bootstrap: with; partition: without, and no row in two bags; the "
        "others: one member each, for comparison",
    )
    ratios: tuple[float, ...] = Field(
        (0.2, 0.4, 0.6, 0.8, 1.0), min_length=1, description="share of every dataset, a member each"
    )
    numbers: tuple[int, ...] | None = Field(
        None,
        description="of the members, which their draws and identities follow from; default 0, 1, 2 and so on. A search "
        "of ratios names those of its members, so that a run takes them over",
    )
    nested: bool = Field(False, description="true: a smaller bag lies inside a larger one; false: independent draws")
    resample: Literal["poisson", "multinomial"] = Field(
        "poisson", description="bootstrap: independent counts per row, or exactly the asked number of draws"
    )
    groups: dict[str, tuple[str, ...]] = Field({}, description="kind groups: names of datasets by name of the group")
    dataset_ratios: dict[str, float] = Field({}, description="factors on the share of single datasets")
    temperature: float = Field(
        1.0, gt=0, description="above 1 evens out the datasets' sizes: shares follow rows ** (1 / temperature)"
    )

    @model_validator(mode="before")
    @classmethod
    def _whole_groups(cls, raw: Any) -> Any:
        """A member of each dataset, task type or group sees all of it, unless the recipe says otherwise."""
        if isinstance(raw, dict) and raw.get("kind") in ("dataset", "task_type", "groups"):
            return {"ratios": (1.0,), **raw}
        return raw

    @field_validator("ratios")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in value:
            if not 0 < ratio <= 1:
                raise ValueError(f"a ratio is a share of each dataset, above 0 and at most 1; got {ratio}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Bags:
        if (self.kind == "groups") != bool(self.groups):
            raise ValueError("kind groups needs 'groups', and no other kind takes them")
        if self.numbers is not None:
            if self.kind not in BY_RATIO or len(self.numbers) != len(self.ratios):
                raise ValueError("numbers are for kinds subset, bootstrap and partition, one for each of the ratios")
            if len(set(self.numbers)) < len(self.numbers) or min(self.numbers) < 0:
                raise ValueError(f"numbers of members are different and at least 0; got {list(self.numbers)}")
        if self.nested and self.kind != "subset":
            raise ValueError("only bags of kind subset can be nested")
        if self.kind == "partition" and math.fsum(self.ratios) > 1 + 1e-9:
            raise ValueError(
                f"the ratios of a partition are shares of the same rows: {list(self.ratios)} sum to more than 1"
            )
        if self.kind not in BY_RATIO and len(self.ratios) != 1:
            raise ValueError(
                f"kind {self.kind} makes one member each: ratios is then one number, its share, as in ratios: [1.0]"
            )
        if any(factor < 0 for factor in self.dataset_ratios.values()):
            raise ValueError("a factor in dataset_ratios is at least 0")
        return self
