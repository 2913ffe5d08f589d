"""The recipe's section ``study``: conditions that are compared on one corpus (``boom-ray study``)."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from boom_ray.config.bags import Passes, ScheduleName
from boom_ray.config.corpus import Frozen
from boom_ray.config.search import Weights

Role = Literal["reference", "merge", "control"]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class Condition(Frozen):
    """One way to get one model: how its members are trained, and how they become one."""

    name: str
    title: str = Field("", description="what the table calls it; default: its name")
    role: Role = Field(
        description="reference: one model trained the usual way, what has to be beaten at equal compute; merge; "
        "control: what a merge has to beat beside it"
    )
    bags: dict[str, Any] = Field({}, description="keys of the recipe's bags that differ here")
    passes: Passes = Field(1, description="of each member over its bag, in the place of train.epochs")
    trunk: Passes | None = Field(
        None, description="passes over all rows that one model makes first; members start from it, merges are around it"
    )
    schedule: ScheduleName | None = Field(None, description="default: train.schedule")
    average: Literal["ema", "last"] | None = Field(
        None, description="the model is this average of its only member's own weights"
    )
    method: str | None = Field(None, description="merge method; default: merge.method")
    weights: Weights = Field("ratio", description="merge weights")
    scale: float = Field(1.0, gt=0, description="factor on the merged task vector; searched weights search it, too")
    seeds: int | None = Field(None, ge=1, description="default: study.seeds")
    exploratory: bool = Field(False, description="marked so in the report; decides no goal, also as a reference")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value) or len(value) > 60:
            raise ValueError(
                f"a condition's name is 1 to 60 small letters, digits, '.', '_' and '-', the first a letter or digit; "
                f"got {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> Condition:
        if "numbers" in self.bags:
            raise ValueError(
                f"{self.name}: the study numbers members itself, by seed and ratio; leave out bags.numbers"
            )
        if self.weights == "searched" and self.scale != 1.0:
            raise ValueError(f"{self.name}: searched weights search the scale, too; leave out scale")
        if self.average and (self.scale != 1.0 or self.weights != "ratio" or self.method):
            raise ValueError(f"{self.name}: an average is a model by itself; leave out method, weights and scale")
        return self

    @property
    def shown(self) -> str:
        """What people call it."""
        return self.title or self.name


class Study(Frozen):
    """The conditions; all of them share corpus, base, tokens, evaluation and training settings but those named."""

    seeds: int = Field(1, ge=1, le=9999, description="of every condition: other bags, orders and draws, same corpus")
    conditions: tuple[Condition, ...] = ()

    @model_validator(mode="after")
    def _named_once(self) -> Study:
        twice = [name for name, count in Counter(c.name for c in self.conditions).items() if count > 1]
        if twice:
            raise ValueError(f"two conditions are called {twice[0]!r}; names are what a study is known by")
        return self

    def seeds_of(self, condition: Condition) -> int:
        """Seeds that a condition is wanted with."""
        return condition.seeds or self.seeds
