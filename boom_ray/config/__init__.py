"""The recipe: the one YAML file that describes a run.

A recipe is checked and frozen before torch or ray is imported, so that a typing error costs a second and not a
cluster. Unknown keys are refused with the nearest valid one. Files are read in :mod:`boom_ray.recipe`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from boom_ray.config.bags import BY_RATIO, Bags, Passes, ScheduleName
from boom_ray.config.corpus import Corpus, Frozen
from boom_ray.config.errors import explain
from boom_ray.config.ratios import RatioSearch
from boom_ray.config.search import Search, Weights
from boom_ray.config.study import Study
from boom_ray.config.update import Update
from boom_ray.redact import redact, without_secrets

_BREAKS = re.compile("[\x85\u2028\u2029]")  # PyYAML writes these as they are and reads them as ends of lines
Pooling = Literal["mean", "cls", "lasttoken"]
Cap = Annotated[int, Field(ge=10)]


class BoomError(Exception):
    """A mistake of the user or of the data: one readable message that says what to do next, never a traceback.

    Credentials in the message are struck out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redact(str(message)))


class BuildBase(Frozen):
    """An encoder built from a config, with a tokenizer trained on the corpus: nothing is downloaded."""

    layers: int = Field(3, ge=1)
    hidden: int = Field(128, ge=8)
    heads: int = Field(4, ge=1)
    vocab: int = Field(8000, ge=300, description="tokens of the WordPiece vocabulary trained on the corpus")
    warm_steps: int = Field(
        60, ge=0, description="contrastive steps before members split off: they merge only from a common point"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of the warm-up")

    @model_validator(mode="after")
    def _heads_divide(self) -> BuildBase:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class Base(Frozen):
    """The checkpoint that all members start from: a Hugging Face name, a local directory, or one that is built."""

    model: str | None = Field(None, description="Hugging Face name or local directory")
    revision: str | None = Field(None, description="commit or tag of a Hugging Face name")
    layers: int | None = Field(None, ge=1, description="of model, only the first so many layers; default: all")
    build: BuildBase | None = None
    pooling: Pooling | None = Field(None, description="default: what the directory's 1_Pooling says, else mean")
    max_tokens: int = Field(128, ge=4, le=131072, description="longer texts are cut, special tokens included")
    append_eos: bool = Field(
        False, description="end texts with the tokenizer's end-of-sequence token, for last-token pooling"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Base:
        if (self.model is None) == (self.build is None):
            raise ValueError("give exactly one of 'model' (a Hugging Face name or a directory) and 'build'")
        if self.build and self.append_eos:
            raise ValueError("append_eos is for a model: the tokenizer that is built ends every text with [SEP]")
        if self.build and self.layers:
            raise ValueError("layers cuts a model; of a base that is built, build.layers says how many it has")
        return self


class Lora(Frozen):
    """Low-rank adapters instead of full fine-tuning; folded into the weights before a member is written."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="last names of the linear modules that are adapted",
    )


class Averages(Frozen):
    """Averages of a member's own weights while it trains: the cheap controls that a merge of members has to beat."""

    ema: float | None = Field(0.999, gt=0, lt=1, description="decay per step of an exponential moving average")
    last: int | None = Field(3, ge=2, description="mean of the weights at this many evenly spaced last moments")
    every: int = Field(10, ge=1, description="steps between two looks at the weights")


class Train(Frozen):
    """One member's training. The defaults are the paper's 0.6B settings (arXiv 2602.05787)."""

    schedule: ScheduleName = Field("batch_shuffle", description="the order of batches: see docs/data.md")
    batch_size: int = Field(256, ge=2, description="rows of one global step, whatever the number of workers")
    epochs: Passes = Field(1, description="passes over the bag; of a fraction of a pass, its first batches")
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many steps; the learning-rate decay fits itself to it"
    )
    tail: Literal["keep", "drop"] = Field("keep", description="a dataset's last incomplete batch; the paper drops it")
    learning_rate: float = Field(5e-5, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    temperature: float = Field(0.02, gt=0)
    hard_negatives: int = Field(7, ge=0, description="negatives drawn per row and epoch")
    false_negative_margin: float | None = Field(
        None, ge=0, description="candidates whose cosine is above the positive's by more than this are no negatives"
    )
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: Lora | None = None
    accumulation: int = Field(1, ge=1, description="global batches whose gradients are averaged into one update")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="what workers share: 0 nothing, 1 optimiser, 2 also gradients, 3 also weights"
    )
    chunk_tokens: int = Field(
        16384, ge=64, description="texts are sorted by length and encoded in chunks of this many tokens (2048 on a CPU)"
    )
    graph_tokens: int | None = Field(
        None,
        ge=0,
        description="tokens of a batch whose activations a worker keeps; of the others they are computed twice. 0: the "
        "least memory; default: all are kept",
    )
    gradient_checkpointing: bool = False
    offload: Literal["none", "optimizer", "weights"] = Field(
        "none", description="what ZeRO keeps in host memory: nothing, the optimiser, also the weights (zero_stage 3)"
    )
    averages: Averages | None = None

    @model_validator(mode="after")
    def _works_together(self) -> Train:
        if self.precision != "float32" and self.zero_stage == 0:
            raise ValueError(
                f"with precision {self.precision}, zero_stage is 1, 2 or 3: at 0 DeepSpeed keeps no float32 copy of "
                "the weights that can be read back, and small updates are lost"
            )
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload optimizer needs zero_stage 1, 2 or 3: at 0 ZeRO holds no optimiser to move")
        if self.offload == "weights" and self.zero_stage != 3:
            raise ValueError("offload weights needs zero_stage 3: below it every worker computes with whole weights")
        return self


class Checkpoints(Frozen):
    """Of a member that trains. No result depends on them."""

    every: int = Field(200, ge=1, description="steps between two")
    keep: int = Field(2, ge=1, description="newest ones that stay")


class Resources(Frozen):
    """What one training worker takes. A member's width (its number of workers) is planned, then frozen."""

    cpus_per_worker: int = Field(1, ge=1, description="also the number of torch threads")
    gpus_per_worker: float | None = Field(None, ge=0, le=1, description="default: 1 where the cluster has GPUs, else 0")
    max_width: int = Field(8, ge=1, description="workers of one member at most")
    max_concurrent: int | None = Field(None, ge=1, description="members at once; default: as many as fit")
    min_members: int | None = Field(
        None, ge=1, description="members that must land for the run to go on without the failed ones; default: all"
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="training workers that an autoscaling cluster is asked for; default: one for each member",
    )
    hang_seconds: float | None = Field(
        1800.0, gt=0, description="without a step, after which a member's workers are started anew; null: never"
    )
    price: float | None = Field(None, ge=0, description="of one device-hour, for `boom-ray plan --cluster`")
    staging: str | None = Field(
        None, description="folder on every node's own disk: token shards are copied there once per node"
    )


class Merge(Frozen):
    method: str = Field("multislerp", description="a merge method in the span of the members: see docs/merging.md")
    task_vectors: bool = Field(False, description="true: merge member minus base; false: raw weights, as BOOM does")
    weights: Weights = Field("searched", description="which merge is published; all three stand in the table")
    scale: float = Field(
        1.0, gt=0, description="factor on the merged task vector, of ratio and uniform weights; below 1: to the base"
    )
    shard_size: str = Field("4GB", pattern=r"^\d+(\.\d+)?\s?[KMG]?B$")

    @model_validator(mode="after")
    def _scaled_by_one(self) -> Merge:
        if self.weights == "searched" and self.scale != 1.0:
            raise ValueError(
                "searched weights search the scale, too, within search.scale. Leave out scale, or publish another "
                "merge: merge.weights: ratio"
            )
        return self


class Evaluate(Frozen):
    sets: tuple[str, ...] = Field((), description="folders of evaluation sets (see docs/evaluation.md)")
    benchmarks: tuple[str, ...] = Field((), description="benchmarks of mteb by name, such as MTEB(eng, v2)")
    tasks: tuple[str, ...] = Field((), description="single tasks of mteb by name")
    prompts: dict[str, str] = Field({}, description="in the place of the model's own, by task, task type or side")
    cap: Cap | dict[str, Cap | None] | None = Field(
        None, description="texts per set at most, the same for all models, or {set, type or default: cap}; default: all"
    )
    chunk_tokens: int = Field(16384, ge=64, description="as train.chunk_tokens")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="what linear layers compute in; bfloat16: about half the time, means within 0.1 points"
    )
    members: bool = Field(True, description="score every member, not only base and merges")


class Recipe(Frozen):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(17, ge=0, lt=2**31)
    base: Base
    corpus: Corpus
    bags: Bags = Bags()
    train: Train = Train()
    checkpoints: Checkpoints = Checkpoints()
    resources: Resources = Resources()
    merge: Merge = Merge()
    search: Search = Search()
    ratio_search: RatioSearch = RatioSearch()
    evaluate: Evaluate = Evaluate()
    update: Update | None = None
    study: Study = Study()

    @model_validator(mode="after")
    def _enough_members(self) -> Recipe:
        counted = dict.fromkeys(BY_RATIO, len(self.bags.ratios)) | {"groups": len(self.bags.groups)}
        members, needed = counted.get(self.bags.kind), self.resources.min_members
        if members is not None and needed is not None and needed > members:
            raise ValueError(f"resources.min_members ({needed}) is more than the {members} members that bags makes")
        return self

    def to_yaml(self) -> str:
        """The resolved recipe, every default written out; addresses without credentials."""
        told = without_secrets(self.model_dump(mode="json"))
        text: str = yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
        return yaml.safe_dump(told, sort_keys=False) if _BREAKS.search(text) else text


def parse_recipe(raw: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Check a plain mapping and freeze it; errors name the key and the nearest valid one."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise BoomError(f"{origin}: {explain(error, Recipe)}") from None
