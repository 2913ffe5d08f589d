"""What ``boom-ray bench search`` searches over: rows of real datasets, members that are a model plus noise, points."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boom_ray.bench.train import local_model
from boom_ray.config import BoomError, Recipe, parse_recipe
from boom_ray.search.points import Point, even_point

Say = Callable[[str], None]
# two of every task type that the datasets have, of short and of long texts
DATASETS = (
    "banking77", "goemotions", "biomedical_titles", "stackoverflow_titles", "medquad", "nl2bash", "jsquad", "selqa",
    "stsb_en", "sts12",
)  # fmt: skip
_NOISE = (0.05, 0.4)  # of the first and the last member, in standard deviations of each tensor


@dataclass(frozen=True)
class Made:
    """Where everything lies; written into a job as text."""

    base: str
    members: tuple[str, ...]
    grams: str
    source: str
    texts: str
    points: str

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """The points as mergekit recipes."""
        return [_mergekit(self, Point.from_json(raw)) for raw in json.loads(Path(self.points).read_text())]


def make(bench: Any, directory: Path, say: Say) -> Made:
    """Make rows, members, Gram matrices and points in a directory; what is there already is not made again.

    Raises:
        BoomError: missing or bad data.
    """
    from boom_ray.bench.prepared import prepare
    from boom_ray.data.batches import DrawSettings
    from boom_ray.search.objective_rows import Source
    from boom_ray.train.rows import read_draw

    run = prepare(_recipe(bench), directory / "run", say)
    base, tokens = run.path(run.keys.base), run.path(run.keys.tokens)
    draw = DrawSettings(run.recipe.seed, bench.negatives)
    source = Source(tokens.resolve(), read_draw(run.ledger, run.keys), draw, (0,))
    members = tuple(directory / f"member-{k}-of-{bench.members}" for k in range(bench.members))
    for number, member in enumerate(members):
        if not (member / "config.json").is_file():
            say(f"member {number}: the model and noise")
            perturb(base, member, float(np.linspace(*_NOISE, bench.members)[number]), number)
    made = Made(
        base=str(base.resolve()),
        members=tuple(str(member.resolve()) for member in members),
        grams=str(directory / "grams.npz"),
        source=str(directory / "source.pkl"),
        texts=str(directory / "texts.json"),
        points=str(directory / "points.json"),
    )
    Path(made.source).write_bytes(pickle.dumps(source))
    Path(made.texts).write_text(json.dumps(_texts(run.path(run.keys.corpus), base, source, bench.rows)))
    Path(made.points).write_text(json.dumps([p.to_json() for p in points(bench.points, bench.members)]))
    _grams(made)
    return made


def _recipe(bench: Any) -> Recipe:
    files = [Path(bench.data) / f"{name}.jsonl.gz" for name in DATASETS]
    if missing := [file for file in files if not file.is_file()]:
        raise BoomError(f"the benchmark judges by rows of {', '.join(DATASETS)}, and {missing[0]} is not there.")
    each = -(-bench.rows // len(DATASETS))
    return parse_recipe(
        {
            "name": "bench-search",
            "base": {"model": str(local_model(bench.model)), "max_tokens": bench.max_tokens},
            "corpus": {
                "datasets": [{"path": str(file)} for file in files],
                "max_rows_per_dataset": max(600, 4 * each),
                "dev": {"fraction": 0.001, "min_rows": 2 * each},
            },
            "bags": {"ratios": [1.0]},
        },
        origin="bench search",
    )


def perturb(base: Path, out: Path, noise: float, seed: int) -> None:
    """A copy of a model with Gaussian noise of ``noise`` standard deviations of each tensor added to it."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(base, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "manifest.json"))
    rng = np.random.default_rng([17, seed])
    for file in base.glob("*.safetensors"):
        weights = load_file(file)
        for name, values in weights.items():
            if values.dtype == np.float32:
                weights[name] = values + noise * values.std() * rng.standard_normal(values.shape, np.float32)
        save_file(weights, out / file.name, metadata={"format": "pt"})


def points(count: int, members: int) -> list[Point]:
    """Random points: weights even over the simplex, scale even in its default bounds."""
    rng = np.random.default_rng(17)
    return [
        even_point("multislerp", rng.dirichlet(np.ones(members)).tolist(), float(rng.uniform(0.7, 1.4)))
        for _ in range(count)
    ]


def _texts(corpus: Path, base: Path, source: Any, rows: int) -> dict[str, dict[str, Any]]:
    """By dataset: the queries and candidates of the judged rows as text, in the order of their batch."""
    from boom_ray.data.texts import read_texts
    from boom_ray.encoder import Encoder
    from boom_ray.search.objective_rows import judged_rows

    judged = judged_rows(source, "a", settings(rows))
    encoder = Encoder.load(base, device="cpu")
    found = {}
    for name, numbers in judged.items():
        contents = list(read_texts(corpus, np.sort(numbers)))
        known = [text for row in contents for text in (row["query"], *row["pos"], *row["neg"])]
        by_tokens = {t.tobytes(): text for t, text in zip(encoder.tokenize(known), known, strict=True)}
        batch = source.batch(name, numbers)
        sides = {"queries": batch.queries, "candidates": batch.candidates}
        found[name] = {
            "rows": [int(n) for n in numbers],
            "task_type": contents[0]["task_type"],
            **{side: [by_tokens[np.asarray(t, np.int32).tobytes()] for t in tokens] for side, tokens in sides.items()},
        }
    return found


def settings(rows: int, **given: Any) -> Any:
    """Settings of the objective with as many rows of each dataset as make ``rows`` in all."""
    from boom_ray.search.objective_rows import ObjectiveSettings

    return ObjectiveSettings(max_rows=-(-rows // len(DATASETS)), temperature=0.05, **given)


def _grams(made: Made) -> None:
    from boom_ray.merge.gram import gram

    gram(list(made.members), made.base).save(made.grams)


def _mergekit(made: Made, point: Point) -> dict[str, Any]:
    weights: Mapping[str, float] = dict(zip(made.members, point.of("all"), strict=True))
    return {
        "merge_method": point.method,
        "models": [{"model": member, "parameters": {"weight": weight}} for member, weight in weights.items()],
        "base_model": made.base,
        "parameters": {"scale": point.scale, "task_vectors": False},
        "dtype": "float32",
    }
