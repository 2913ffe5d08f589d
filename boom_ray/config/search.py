"""The recipe's section ``search``: what is searched, by what, judged by what, and how much it may cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from boom_ray.config.corpus import Frozen

Bounds = tuple[float, float]
Weights = Literal["searched", "ratio", "uniform"]  # of a merge: found by the search, as the bags are large, all equal
# of merge.registry, without importing it: the methods whose result is a sum of the members, decided by a few numbers
SEARCHABLE = ("linear", "task_arithmetic", "multislerp", "karcher", "slerp", "nuslerp", "model_stock")
GRADIENT = ("self_positioning", "gradient")


class Halving(Frozen):
    """Successive halving over rows: all points see a subset, the best share of 1 / eta the next larger one."""

    rungs: int = Field(3, ge=2, le=6, description="subsets, the last is all rows")
    eta: int = Field(3, ge=2, le=10, description="every rung has eta times the rows and 1 / eta of the points")


class Gradient(Frozen):
    """Of searchers self_positioning and gradient: one trial is some steps of Adam and a judgement."""

    steps: int = Field(10, ge=1, description="gradient steps per trial")
    batch: int = Field(32, ge=2, description="probe rows of a step, drawn evenly over datasets")
    learning_rate: float = Field(0.02, gt=0, description="of Adam, in the units of its few parameters")
    penalty: float = Field(
        0.05, ge=0, description="mu of mu * lambda, the published penalty on the length of the merge"
    )


class Search(Frozen):
    """Merge weights and all else that makes a merge of given members, through Ray Tune; judged on dev half A."""

    searcher: Literal["tpe", "random", "grid", "self_positioning", "gradient"] = Field(
        "tpe", description="Optuna's TPE, draws, a grid on the simplex, or descent: see docs/search.md"
    )
    trials: int = Field(24, ge=1, description="points that are judged; a grid takes the largest that fits")
    budget_seconds: float | None = Field(
        None, gt=0, description="device-seconds of trials after which no further round begins; default: no limit"
    )
    round: int = Field(
        4, ge=1, description="trials asked and told together, so that no result depends on which ends first"
    )
    scale: Bounds = Field((0.7, 1.4), description="bounds of the factor on the merged task vector")
    weights: Bounds = Field((0.0, 1.0), description="bounds of a member's share; all shares sum to 1")
    drop_members: bool = Field(False, description="members may drop out: shares that are exactly 0 become likely")
    methods: tuple[str, ...] = Field((), description="merge methods to choose from; default: merge.method alone")
    groups: Literal["none", "coarse", "layers"] = Field(
        "none", description="tensors with weights of their own: embeddings, blocks of layers and norms, or every layer"
    )
    base_share: Bounds | None = Field(None, description="bounds of the base model's share in the merge; default: none")
    objective: Literal["loss", "metric"] = Field(
        "loss", description="training loss relative to the base's, or the task type's metric, on rows no bag holds"
    )
    aggregate: Literal["tasks", "types"] = Field("tasks", description="mean over datasets, or over task types' means")
    datasets: tuple[str, ...] = Field((), description="of the corpus, the only ones to judge by; default: all")
    max_rows: int = Field(200, ge=2, description="rows per dataset in the objective")
    actors: int = Field(2, ge=1, description="trials at once; each actor keeps the members resident")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="what linear layers compute in while judging; bfloat16 is quicker where the processor has "
        "instructions for it",
    )
    halving: Halving | None = None
    gradient: Gradient = Gradient()

    @field_validator("scale")
    @classmethod
    def _scale(cls, value: Bounds) -> Bounds:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"scale is [low, high] with 0 < low <= high; got {list(value)}")
        return value

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: Bounds) -> Bounds:
        if not 0 <= value[0] <= value[1] <= 1 or value[1] == 0:
            raise ValueError(
                f"weights is [low, high] with 0 <= low <= high <= 1 and high above 0: shares on the simplex; got "
                f"{list(value)}"
            )
        return value

    @field_validator("base_share")
    @classmethod
    def _base_share(cls, value: Bounds | None) -> Bounds | None:
        if value is not None and not 0 <= value[0] <= value[1] < 1:
            raise ValueError(f"base_share is [low, high] with 0 <= low <= high < 1; got {list(value)}")
        return value

    @field_validator("methods")
    @classmethod
    def _methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in SEARCHABLE:
                raise ValueError(
                    f"method '{name}' is not in the span of the members, or takes no weights that could be searched; "
                    f"choose from {', '.join(SEARCHABLE)}"
                )
        if len(set(value)) < len(value):
            raise ValueError("a method is named twice")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Search:
        if self.drop_members and self.weights[0] > 0:
            raise ValueError("drop_members lets shares be 0, and weights asks for more: give one of the two")
        if self.searcher in GRADIENT:
            self._descends()
        return self

    def _descends(self) -> None:
        """What descent cannot take is refused here, not after the members have trained."""
        fixed: dict[str, object] = {"halving": None, "base_share": None, "drop_members": False, "weights": (0.0, 1.0)}
        fixed |= {"precision": "float32"}
        for name, default in fixed.items():
            if getattr(self, name) != default:
                raise ValueError(f"searcher {self.searcher} descends on weights and scale alone: leave out {name}")
        if len(self.methods) > 1:
            raise ValueError(f"searcher {self.searcher} works with one merge method, not {len(self.methods)}")
        if self.searcher == "self_positioning" and (self.groups != "none" or self.methods):
            raise ValueError(
                "self_positioning works on whole models, by its own chain of slerps: leave out groups and "
                "methods, or choose searcher: gradient"
            )
