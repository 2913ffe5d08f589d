"""The recipe's section ``corpus``: where rows come from, what each dataset is, and what is dropped."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

TaskType = Literal["retrieval", "reranking", "classification", "clustering", "sts"]
TASK_TYPES: tuple[str, ...] = get_args(TaskType)
Layout = Literal["boom", "flagembedding", "sentence_transformers", "tevatron"]


class Frozen(BaseModel):
    """A section: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Columns(Frozen):
    """Names of the columns in the source files."""

    query: str = "query"
    pos: str = "pos"
    neg: str = "neg"
    score: str = "score"
    label: str = Field("label", description="class of the query; texts of equal label are no negatives of each other")


class Instruction(Frozen):
    """Text put before every query and every passage of a dataset."""

    query: str = ""
    passage: str = ""


class FilesSource(Frozen):
    """Rows from files: local, in an object store, or of a Hugging Face dataset. A dataset is an entry, not code."""

    source: Literal["files"] = "files"
    path: str | None = Field(None, description="file, folder or glob; also s3://, gs:// and hf://datasets/OWNER/NAME/…")
    hub: str | None = Field(None, description="name of a Hugging Face dataset, instead of path")
    revision: str | None = Field(None, description="commit, branch or tag of the hub's dataset")
    subset: str | None = Field(None, description="configuration of the hub's dataset")
    split: str = Field("train", description="split of the hub's dataset")
    layout: Layout = Field("boom", description="field names of other tools: see docs/data.md")
    name: str | None = Field(None, description="dataset name; default: the row's 'dataset' field, else the file's stem")
    task_type: TaskType | None = Field(None, description="default: the row's 'task_type' field")
    columns: Columns = Columns()
    instruction: Instruction = Instruction()
    loss: Literal["auto", "infonce", "cosent"] = Field("auto", description="auto: cosent for sts rows with scores")
    negatives: Literal["auto", "in_batch", "own"] = Field(
        "auto", description="what a query is compared with; auto: own for classification and clustering (boom.md 1.3)"
    )
    hard_negatives: int | None = Field(None, ge=0, description="per row at most; default: train.hard_negatives")
    symmetric: bool | None = Field(None, description="both sides alike: half batch; default: clustering and sts")
    cap: int | None = Field(None, ge=1, description="rows of this dataset at most; default: max_rows_per_dataset")
    weight: float = Field(1.0, gt=0, description="multiplies the share of this dataset in every bag")
    language: str | None = None
    licence: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> FilesSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of 'path' (files) and 'hub' (the name of a Hugging Face dataset)")
        if self.hub is None and (self.revision or self.subset):
            raise ValueError(
                "'revision' and 'subset' belong to 'hub'; in a path write hf://datasets/OWNER/NAME@REVISION/…"
            )
        if self.layout != "boom" and self.columns != Columns():
            raise ValueError(f"'columns' serves layout boom; layout {self.layout} has names of its own")
        return self

    @property
    def origin(self) -> str:
        """What a message calls the source."""
        return self.path if self.path is not None else f"hf://datasets/{self.hub}"


class PythonEnvironmentSource(Frozen):
    """Functions of the standard library and of installed distributions, read with ast: nothing is imported."""

    source: Literal["python_environment"]
    max_functions: int = Field(
        12000, ge=100, description="functions with a docstring that are read, spread over packages"
    )
    max_per_package: int = Field(900, ge=10)
    hard_negatives: int = Field(3, ge=0, description="other functions of the same module per row")
    held_out_functions: float = Field(
        0.08, gt=0, lt=0.5, description="share of qualified names kept for in-domain evaluation"
    )
    held_out_packages: float = Field(
        0.1, gt=0, lt=0.5, description="share of packages kept whole for out-of-domain evaluation"
    )
    eval_queries: int = Field(300, ge=10, description="queries of each retrieval evaluation set")
    eval_documents: int = Field(1000, ge=20, description="documents of each retrieval evaluation set")


def _files_unless_told(entry: Any) -> Any:
    return {"source": "files", **entry} if isinstance(entry, dict) else entry


Source = Annotated[
    FilesSource | PythonEnvironmentSource, Field(discriminator="source"), BeforeValidator(_files_unless_told)
]


class Dev(Frozen):
    """Rows in no bag, hash-chosen per dataset, in two halves: A to search on, B to report."""

    fraction: float = Field(0.02, gt=0, lt=0.5)
    min_rows: int = Field(50, ge=2)


class Mine(Frozen):
    """Hard negatives found by models in the corpus' own passages; they replace those of the sources."""

    models: tuple[str, ...] = Field(min_length=1, description="directories or hub names; they take turns")
    count: int = Field(7, ge=1, description="negatives per row")
    ranks: tuple[int, int] = Field(
        (10, 210), description="window of ranks, from and to (exclusive), that they come from"
    )
    share: float = Field(0.95, gt=0, le=1, description="only texts that score below this share of the positive's score")
    datasets: tuple[str, ...] = Field((), description="only these; default: all with task type retrieval or reranking")

    @field_validator("ranks")
    @classmethod
    def _window(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"ranks is [from, to) with 0 <= from < to; got {list(value)}")
        return value


class Corpus(Frozen):
    datasets: tuple[Source, ...] = Field(min_length=1)
    max_bad_fraction: float = Field(
        0.0, ge=0, le=1, description="bad rows are quarantined; more than this share stops the run"
    )
    max_rows_per_dataset: int | None = Field(
        None, ge=1, description="hash-chosen cap, the same rows whatever the order of files"
    )
    near_duplicates: float | None = Field(
        None, gt=0, lt=1, description="rows whose MinHash similarity to an earlier one is above this are dropped, too"
    )
    ngram: int | None = Field(
        None,
        ge=2,
        description="also drop rows that share this many words in a row with an evaluation text (13 is usual)",
    )
    mine: Mine | None = None
    dev: Dev = Dev()
