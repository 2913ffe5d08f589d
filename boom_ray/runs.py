"""A run seen from outside: where it lives, what it would do, what it found. Starts nothing, imports nothing heavy."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from boom_ray.config import BoomError, Recipe
from boom_ray.costs import estimate
from boom_ray.digests import base_digest, corpus_datasets, digests_of_sources, miner_digests, mteb_digests
from boom_ray.evaluate import sets as eval_sets
from boom_ray.evaluate.sets import EvalSet
from boom_ray.evaluate.settings import Cap, asked, general
from boom_ray.evaluate.training import trained_on
from boom_ray.ledger import Ledger
from boom_ray.plan import Keys, Step, World, derive_keys, steps
from boom_ray.recipe import load_recipe
from boom_ray.records import lost_members
from boom_ray.report.summary import write_summary
from boom_ray.stores import mirrors
from boom_ray.stores.addresses import below, is_address


def plan(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
) -> tuple[Recipe, list[Step]]:
    """The steps that :func:`run` would take, without touching anything."""
    recipe, ledger, keys = look_at(recipe, overrides=overrides, run_dir=run_dir)
    return recipe, list_steps(recipe, ledger, keys)


def look_at(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    replan: bool = False,
) -> tuple[Recipe, Ledger, Keys]:
    """A recipe's run as it stands, without touching anything: there may be none yet.

    Args:
        replan: count the members that have failed for good as members that are missing.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, tuple(overrides))
    directory = resolve_run_dir(recipe, run_dir)
    ledger = Ledger.open(directory, recipe.name) if directory.exists() else Ledger(directory)
    world = look(recipe)
    return recipe, ledger, derive_keys(recipe, world) if replan else run_keys(recipe, world, ledger)


def run_keys(recipe: Recipe, world: World, ledger: Ledger) -> Keys:
    """The artifacts of a run, which goes on without the members that have failed for good if the recipe lets it."""
    keys = derive_keys(recipe, world)
    lost = lost_members(recipe, ledger, keys.members)
    return derive_keys(recipe, world, lost) if lost else keys


def report(run_dir: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Path]:
    """Write the report of a run again, finished or not: (summary, path of the page). Needs none of its sources.

    Raises:
        BoomError: not a run directory.
    """
    recipe, ledger, keys = _known_run(mirrors.opened(run_dir), overrides)
    return write_summary(ledger, keys, recipe)


@dataclass(frozen=True)
class Evaluation:
    """What a model is to be scored on, and the datasets that it was trained on, if known."""

    folders: tuple[Path, ...] = ()
    cap: Cap = None
    trained: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None  # float32, or bfloat16
    strict: bool = True  # a folder called in_domain/ that the training datasets contradict is an error

    @property
    def named(self) -> bool:
        """There is something to score a model on."""
        return bool(self.folders or self.benchmarks or self.tasks)

    def sets(self, trained: Sequence[str] | None) -> list[EvalSet]:
        """Local sets and mteb's tasks side by side, with cap and prompts.

        Raises:
            BoomError: a set or name that is not there, one name for two sets, a cap or prompt for none of them.
        """
        found = eval_sets.find_sets(self.folders, trained, strict=self.strict) if self.folders else []
        if self.benchmarks or self.tasks:
            from boom_ray.evaluate.benchmarks import find_tasks

            of_mteb = find_tasks(self.benchmarks, self.tasks, trained)
            if both := {entry.name for entry in found} & {entry.result_name for entry in of_mteb}:
                raise BoomError(
                    f"a local evaluation set and a task of mteb are both called '{min(both)}'. Rename the set."
                )
            found += of_mteb
        return asked(found, self.cap, self.prompts, self.precision)


def find_evaluation(
    model: Path,
    folders: Sequence[Path],
    run_dir: Path | None,
    overrides: Sequence[str],
    given: Evaluation | None = None,
) -> Evaluation:
    """What a model is scored on: what is given, else what ``run_dir`` is, else what the run is that the model is in.

    Args:
        folders: folders of sets.
        given: benchmarks, tasks, cap, prompts, precision and training datasets on top; each comes before the run's.

    Raises:
        BoomError: nothing is given, and there is no run to take it from.
    """
    told = replace(given or Evaluation(), folders=tuple(folders))
    parent = model.resolve().parent.parent
    root = mirrors.opened(run_dir) if run_dir else (parent if (parent / "world.json").is_file() else None)
    if root is None:
        if not told.named:
            raise BoomError(
                f"what is {model} to be scored on? Give --sets FOLDER, --benchmark or --task, or --run-dir of a run."
            )
        if overrides:
            raise BoomError("--set changes a run's recipe: give --run-dir too, or use --cap and --trained.")
        return told if told.trained else replace(told, trained=trained_on(model), strict=False)
    found = run_evaluation(*_known_run(root, overrides))
    cap, prompts = general(found.cap, found.prompts) if told.named else (found.cap, found.prompts)
    if not told.named:
        told = replace(told, folders=found.folders, benchmarks=found.benchmarks, tasks=found.tasks)
    told = replace(told, cap=cap if told.cap is None else told.cap, prompts=told.prompts or prompts)
    return replace(told, precision=told.precision or found.precision, trained=told.trained or found.trained)


def run_evaluation(recipe: Recipe, ledger: Ledger, keys: Keys) -> Evaluation:
    """What a run's models are scored on, the sets that its corpus brought among it, and the datasets it trains on."""
    brought, asked_for = ledger.path(keys.corpus) / "eval", recipe.evaluate
    folders = [Path(f) for f in asked_for.sets] + ([brought] if brought.is_dir() else [])
    entries = ledger.read_json(keys.corpus, "datasets.json") if ledger.has(keys.corpus) else []
    trained = tuple(d["name"] for d in entries if d["rows"])
    named = (asked_for.benchmarks, asked_for.tasks, asked_for.prompts, asked_for.precision)
    return Evaluation(tuple(folders), asked_for.cap, trained, *named)


def open_run(where: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Ledger, Keys]:
    """A run by its directory, as it was carried out, or by its recipe, wherever that one's run lives.

    Raises:
        BoomError: neither.
    """
    run = mirrors.opened(where)
    if run.is_dir():
        return _known_run(run, overrides)
    return look_at(where, overrides=overrides)


def _known_run(root: Path, overrides: Sequence[str]) -> tuple[Recipe, Ledger, Keys]:
    """A run directory's recipe and keys, from what the run itself wrote down."""
    world = read_world(root)
    recipe, ledger = load_recipe(root / "recipe.yaml", overrides), Ledger(root)
    return recipe, ledger, run_keys(recipe, world, ledger)


def read_world(root: Path) -> World:
    """What a run's recipe pointed at when it was carried out.

    Raises:
        BoomError: not a run directory.
    """
    if not (root / "world.json").is_file():
        where = mirrors.told(root)
        raise BoomError(f"{where} is not the directory of a run: it has no world.json. `boom-ray run` makes one.")
    raw = json.loads((root / "world.json").read_text())
    datasets = tuple((name, task_type) for name, task_type in raw.get("datasets", ()))
    world = World(tuple(raw["sources"]), raw["base"], tuple(raw["sets"]), datasets, tuple(raw.get("miners", ())))
    return replace(world, tasks=tuple(raw.get("tasks", ())))


def list_steps(recipe: Recipe, ledger: Ledger, keys: Keys) -> list[Step]:
    return steps(keys, ledger.has, estimate(recipe, ledger, keys))


def resolve_run_dir(recipe: Recipe, run_dir: str | os.PathLike[str] | None) -> Path:
    """Where the run of a recipe lives: see :func:`run_dir_of`."""
    return run_dir_of(recipe.name, run_dir)


def run_dir_of(name: str, run_dir: str | os.PathLike[str] | None) -> Path:
    """Where a run lives on this node, of an address its mirror. In a Ray job a relative path is refused: the job's
    working directory is a temporary copy."""
    in_job = bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    home = os.environ.get("BOOM_RAY_HOME")
    given = os.fspath(run_dir) if run_dir is not None else below(home, name) if home else None
    if given is not None and is_address(given):
        return mirrors.opened(given)
    if given is not None:
        path = Path(given).expanduser()
    else:
        path = Path.home() / "boom_ray" / "runs" / name if in_job else Path("runs") / name
    if in_job and not path.is_absolute():
        raise BoomError(
            f"run directory {path} is relative, but a job's working directory is a temporary copy that is deleted. "
            f"Give an absolute --run-dir on storage that all nodes share, or set BOOM_RAY_HOME."
        )
    return path


def look(recipe: Recipe) -> World:
    """Digests of what the recipe points at.

    Raises:
        BoomError: a source, a base or an evaluation folder is not there.
    """
    seen = digests_of_sources(recipe.corpus.datasets)
    sets = eval_sets.find_sets(recipe.evaluate.sets, None) if recipe.evaluate.sets else []
    digests = tuple([s.name, s.digest] for s in sets)
    known = (corpus_datasets(recipe), miner_digests(recipe), mteb_digests(recipe))
    return World(seen, base_digest(recipe), digests, *known)


def require_data(recipe: Recipe) -> None:
    """Check the caps of the recipe's mteb tasks, and offline that their data are here: before anything is trained."""
    if recipe.evaluate.benchmarks or recipe.evaluate.tasks:
        from boom_ray.evaluate import benchmarks, downloads

        found = benchmarks.find_tasks(recipe.evaluate.benchmarks, recipe.evaluate.tasks)
        names = {name for entry in found for name in (entry.name, entry.result_name)}
        downloads.require_data(asked(found, general(recipe.evaluate.cap, {}, names)[0]))


def with_found_miners(recipe: Recipe, root: Path) -> Recipe:
    """The recipe with the directories of mining models that it names as the run directory ``root`` does.

    ``members/member-0-IDENTITY`` is that artifact, ``member-0`` the only one of that name; other names stay.

    Raises:
        BoomError: nothing is to be mined, or several artifacts have the name.
    """
    settings = recipe.corpus.mine
    if settings is None:
        raise BoomError("which model is to mine? Give --model DIRECTORY, or corpus.mine.models in the recipe.")
    models = tuple(_find_miner(model, root) for model in settings.models)
    corpus = recipe.corpus.model_copy(update={"mine": settings.model_copy(update={"models": models})})
    return recipe.model_copy(update={"corpus": corpus})


def _is_called(artifact: Path, label: str) -> bool:
    return artifact.name.rpartition("-")[0] == label


def _find_miner(model: str, root: Path) -> str:
    if Path(model).is_dir():
        return model
    for config in mirrors.listed(root):
        if config.name == "config.json" and (config.parent == root / model or _is_called(config.parent, model)):
            mirrors.fetch(config.parent)
    if (root / model).is_dir():
        return str(root / model)
    found = sorted(config.parent for config in root.glob(f"*/{glob.escape(model)}-*/config.json"))
    if len(found) > 1:
        shown = ", ".join(path.relative_to(root).as_posix() for path in found)
        raise BoomError(f"{root} has several models called {model!r}: {shown}. Give one of these names.")
    return str(found[0]) if found else model
