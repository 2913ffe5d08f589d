"""Models to compare, found by what people call them: a model directory, a run, or a name in a results folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from boom_ray.config import BoomError
from boom_ray.evaluate.compare import Scored, Task
from boom_ray.evaluate.results import kept_folder, kept_scores, model_revision
from boom_ray.evaluate.samples import read_samples
from boom_ray.evaluate.scored import read_scored
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import Keys
from boom_ray.runs import open_run


@dataclass(frozen=True)
class Contender:
    """A model of a comparison. ``directory`` is None where only its kept results are known; ``scores`` is the scores
    artifact of the run that it belongs to, if any."""

    label: str
    name: str
    directory: Path | None
    ledger: Ledger | None = None
    scores: Key | None = None


def split_sides(given: Sequence[str]) -> dict[str, list[str]]:
    """``{label: what its seeds are called}`` of ``A``, ``A1,A2,A3`` or ``LABEL=A1,A2``, in the order given.

    Raises:
        BoomError: nothing between two commas, or two sides of one label.
    """
    sides: dict[str, list[str]] = {}
    names = [text.partition("=")[2] or text for text in given]
    short = _short([name for text in names for name in text.split(",")])
    for text, listed in zip(given, names, strict=True):
        seeds = listed.split(",")
        if not all(seeds):
            raise BoomError(f"{text!r}: seeds of one method stand with a comma and no space between them.")
        label = text.partition("=")[0] if "=" in text else _common([short[name] for name in seeds])
        if label in sides:
            raise BoomError(f"two sides are called {label!r}. Name them: boom-ray compare one=PATH other=PATH.")
        sides[label] = seeds
    return sides


def _short(paths: Sequence[str]) -> dict[str, str]:
    """The shortest ends of paths that tell them apart."""
    parts = {path: Path(path).parts for path in paths}
    depth = 1
    while depth < max(map(len, parts.values())) and len({p[-depth:] for p in parts.values()}) < len(parts):
        depth += 1
    return {path: "/".join(p[-depth:]) for path, p in parts.items()}


def _common(names: Sequence[str]) -> str:
    """What the names of seeds share at their beginning: ``new-seed`` of ``new-seed1`` and ``new-seed2``."""
    if len(names) == 1:
        return names[0]
    shared = "".join(letters[0] for letters in takewhile(lambda c: len(set(c)) == 1, zip(*names, strict=False)))
    return shared.rstrip("-_./0123456789") or f"{names[0]} and {len(names) - 1} others"


def find_contender(what: str) -> Contender:
    """The model that is called so.

    Args:
        what: a model directory; a run's directory, for the model that it published; ``RUN:MODEL`` for another of the
            run's models, as its tables call it; else a model's name in a results folder.

    Raises:
        BoomError: the run has no such model, or has not scored it yet.
    """
    root, _, name = what.rpartition(":")
    if (Path(what) / "world.json").is_file():
        return _of_run(Path(what), None)
    if root and (Path(root) / "world.json").is_file():
        return _of_run(Path(root), name)
    directory = Path(what)
    if not directory.is_dir():
        return Contender(what, what, None)
    above = directory.resolve().parent.parent
    return (_inside_run(above, directory) if (above / "world.json").is_file() else None) or Contender(
        what, directory.resolve().name, directory
    )


def _of_run(root: Path, name: str | None) -> Contender:
    recipe, ledger, keys = open_run(root)
    name = name or f"merge-{recipe.merge.weights}"
    if name not in keys.models:
        raise BoomError(f"run {root} has no model '{name}'; it has {', '.join(keys.models)}.")
    if not ledger.has(keys.scores[name]):
        raise BoomError(f"run {root} has not scored {name} yet. Finish it first: boom-ray run {root / 'recipe.yaml'}.")
    return Contender(f"{root.name}:{name}", name, ledger.path(keys.models[name]), ledger, keys.scores[name])


def _inside_run(root: Path, directory: Path) -> Contender | None:
    """A directory of a run's own as that run scored it, if it is one of the run's present variant."""
    recipe, ledger, keys = open_run(root)
    name = _name_in(keys, ledger, directory.resolve(), f"merge-{recipe.merge.weights}")
    if name is None or not ledger.has(keys.scores[name]):
        return None
    return Contender(f"{root.name}:{name}", name, directory, ledger, keys.scores[name])


def _name_in(keys: Keys, ledger: Ledger, directory: Path, chosen: str) -> str | None:
    if ledger.has(keys.published) and ledger.path(keys.published).resolve() == directory:
        return chosen
    found = (name for name, key in keys.models.items() if ledger.path(key).resolve() == directory)
    return next((name for name in found if name in keys.scores), None)


def kept(contender: Contender, results: Path) -> tuple[Scored, list[Task]]:
    """What is known of a model without scoring it: its run's scores, else those in the results folder.

    Raises:
        BoomError: there are none; says which command makes them.
    """
    if contender.ledger is not None and contender.scores is not None:
        return read_scored(contender.ledger, contender.scores, contender.label)
    revision = model_revision(contender.directory) if contender.directory else None
    found = kept_scores(results, contender.name, revision)
    if not found and contender.directory is None:
        raise BoomError(f"{contender.label} is no directory, and no model in {results} that has been scored.")
    if not found:
        raise BoomError(
            f"{contender.label} has no scores in {results}. Score it first: boom-ray evaluate {contender.directory} "
            f"--sets FOLDER --results {results}; or give directories of all models and --sets or --benchmark here."
        )
    folder = kept_folder(results, contender.name, revision)
    files = read_samples(folder) if folder else {}
    samples = {k.name: files[stem] for k in found if (stem := k.name.replace("/", "-")) in files}
    scores = {k.name: k.score for k in found}
    tasks = [Task(k.name, k.task_type, k.domain, k.metric, k.benchmark) for k in found]
    return Scored(contender.label, scores, samples), tasks
