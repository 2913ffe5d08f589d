"""From an update's recipe to everything that it works with: the run, the version that it goes onto, the new data.

Reads the ledger and the digests of the new data; starts nothing, imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_ray.chain import Version, lineage, newest, parent_for, read_versions
from boom_ray.config import BoomError, Recipe, parse_recipe
from boom_ray.config.update import Update
from boom_ray.digests import digests_of_sources, mteb_digests
from boom_ray.evaluate import sets as eval_sets
from boom_ray.ledger import PUBLISHED, Key, Ledger
from boom_ray.plan import Cost, Keys, Step, World
from boom_ray.recipe import apply_overrides, fill_environment, read_yaml, with_catalogue
from boom_ray.runs import open_run, run_dir_of
from boom_ray.stores.mirrors import opened
from boom_ray.update.keys import Stand, Trained, UpdateKeys, data_digest, derive_update

_THE_RUNS = ("name", "seed", "base", "corpus", "bags")  # sections that an update cannot change


@dataclass(frozen=True)
class Place:
    """A run directory with its first version, and the version that was asked for, if one was."""

    recipe: Recipe
    ledger: Ledger
    keys: Keys
    asked: str | None = None

    @property
    def line(self) -> list[Version]:
        """The chain up to the version that was asked for, else up to the newest one.

        Raises:
            BoomError: nothing is published yet, or the version asked for is of another variant of the run.
        """
        versions, root = read_versions(self.ledger), self.keys.published.identity
        if not self.ledger.has(self.keys.published):
            raise BoomError(
                f"{self.ledger} has not published a model yet, so there is nothing to update. Finish it first: "
                f"boom-ray run {self.ledger.root / 'recipe.yaml'} --run-dir {self.ledger}"
            )
        last = newest(versions, root)
        assert last is not None  # the run's own version is there
        found = lineage(versions, self.asked or last.key.identity)
        if found[0].key.identity != root:
            raise BoomError(
                f"{found[-1].key.name} comes from {found[0].key.name}, an earlier variant of the run in "
                f"{self.ledger}; its recipe now makes {self.keys.published.name}. Update that one."
            )
        return found


@dataclass(frozen=True)
class Job:
    """One update. ``recipe`` is the run's with the changes of the update's; ``run`` are the run's own keys."""

    recipe: Recipe
    settings: Update
    ledger: Ledger
    run: Keys
    line: tuple[Version, ...]
    stand: Stand
    world: World
    keys: UpdateKeys
    echo: Callable[[str], None]

    def has(self, key: Key) -> bool:
        return self.ledger.has(key)

    def path(self, key: Key) -> Path:
        return self.ledger.path(key)

    @property
    def rows_settings(self) -> Recipe:
        """The recipe with the new data in the place of the corpus' datasets; nothing is mined for them."""
        corpus = self.recipe.corpus.model_copy(update={"datasets": self.settings.datasets, "mine": None})
        return self.recipe.model_copy(update={"corpus": corpus})

    @property
    def folders(self) -> list[Path]:
        """Folders of all evaluation sets: the run's, those that its corpus brought, those of the new domain."""
        named = [Path(folder) for folder in (*self.recipe.evaluate.sets, *self.settings.sets)]
        brought = [self.path(key) / "eval" for key in (self.run.corpus, self.keys.fresh)]
        return named + [folder for folder in brought if folder.is_dir()]


def load_job(
    recipe: str | os.PathLike[str],
    overrides: Sequence[str],
    run_dir: str | os.PathLike[str] | None,
    echo: Callable[[str], None],
) -> Job:
    """Read an update's recipe: a whole recipe with a section ``update``, or that section alone.

    Raises:
        BoomError: no new data are named; there is no run, or it has not published; a section differs from the run's.
    """
    raw = with_catalogue(fill_environment(apply_overrides(read_yaml(recipe), overrides)))
    if not isinstance(raw.get("update"), dict):
        raise BoomError(
            f"recipe {recipe} names no new data. Add a section: update: {{datasets: [{{path: NEW.jsonl}}]}}, or give "
            f"--set update.datasets='[{{path: NEW.jsonl}}]'."
        )
    place = find_place(raw["update"].get("model"), raw.get("name"), run_dir)
    joined = _joined(raw, place.recipe, str(recipe))
    settings = joined.update
    assert settings is not None  # the section was there and has been checked
    world = _look(joined, settings)
    line = place.line
    parent = parent_for(line, data_digest(settings, world))
    chain = tuple(line[: line.index(parent) + 1])
    stand = _stand(place, parent)
    keys = derive_update(joined, settings, world, stand, place.keys)
    return Job(joined, settings, place.ledger, place.keys, chain, stand, world, keys, echo)


def steps(job: Job) -> list[Step]:
    """All steps of an update in order. Once its version is published, nothing else of it is wanted."""
    keys = job.keys
    named = [("new rows", keys.fresh), ("joint corpus", keys.corpus), ("tokens", keys.tokens), ("bag", keys.bags)]
    named.append((f"member, from the {job.settings.init}", keys.member))
    if keys.candidate == keys.ensemble:
        named += [("gram of all members", keys.everyone), ("merge of all members", keys.ensemble)]
    named.append(("gram", keys.pair))
    named += [("search", keys.search)] if job.settings.weights == "searched" else []
    named += [("weights", keys.bound), ("merge", keys.merge)]
    named += [(f"score {name}", key) for name, key in keys.scores.items()]
    named += [("drift", keys.drift), ("publish", keys.published)]
    finished = job.has(keys.published)
    return [Step(name, key, finished or job.has(key), Cost()) for name, key in named]


def find_place(model: Any, name: Any, run_dir: str | os.PathLike[str] | None) -> Place:
    """The run that a model belongs to.

    Args:
        model: a run directory, or a version in one (``RUN/published/NAME``); None: what ``run_dir`` or ``name`` say.
        name: of the recipe, for the usual place of its run.

    Raises:
        BoomError: it is in no run directory, or that one does not exist.
    """
    if model is not None:
        path = opened(str(model)).expanduser()
        if (path / "world.json").is_file():
            return Place(*open_run(path))
        root = path.resolve().parent.parent
        if not path.is_dir():
            raise BoomError(f"model {model} does not exist: give a run directory, or a version in its published/.")
        if path.resolve().parent.name != PUBLISHED or not (root / "world.json").is_file():
            raise BoomError(
                f"model {model} is in no run directory: an update takes a core of the old corpus, and the ledger of "
                f"its run has that. Give the run directory, or a version in its published/."
            )
        return Place(*open_run(root), asked=path.resolve().name.rpartition("-")[2])
    if run_dir is None and not isinstance(name, str):
        raise BoomError("which model is to be updated? Give update.model, --run-dir, or the whole recipe of its run.")
    root = run_dir_of(str(name), run_dir)
    if not (root / "world.json").is_file():
        raise BoomError(
            f"{root} is no run directory, so there is no model to update. `boom-ray run` with the same recipe makes "
            f"the first version; update.model or --run-dir name another place."
        )
    return Place(*open_run(root))


def _joined(raw: dict[str, Any], run: Recipe, origin: str) -> Recipe:
    """The run's recipe with the sections that the update's recipe gives; what makes the old rows and the base must not
    differ."""
    joined = parse_recipe(_laid_over(run.model_dump(mode="json", exclude={"update"}), raw), origin=origin)
    for section in _THE_RUNS:
        if getattr(joined, section) != getattr(run, section):
            raise BoomError(
                f"{origin}: '{section}' differs from that of the run, which an update keeps. Leave the section out; "
                f"new data belong into update.datasets."
            )
    return joined


def _laid_over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    changed = dict(under)
    for key, value in over.items():
        below = changed.get(key)
        changed[key] = _laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return changed


def _look(recipe: Recipe, settings: Update) -> World:
    """Digests of the new data and of all sets; the old sources need not be there any more."""
    folders = (*recipe.evaluate.sets, *settings.sets)
    sets = eval_sets.find_sets(folders, None) if folders else []
    digests = tuple([s.name, s.digest] for s in sets)
    return World(digests_of_sources(settings.datasets), None, digests, (), (), mteb_digests(recipe))


def _stand(place: Place, version: Version) -> Stand:
    if version.update is not None:
        return Stand.from_json(version, version.update["stand"])
    return _first_stand(place, version)


def _first_stand(place: Place, version: Version) -> Stand:
    """What a run's own version stands on."""
    from boom_ray.data.core import rows_behind
    from boom_ray.train.rows import read_draw, read_rows

    keys, ledger = place.keys, place.ledger
    rows, drawn = read_rows(ledger, keys), read_draw(ledger, keys)
    bags = {i: drawn.bags[i] for i in keys.ensemble}
    members = tuple(Trained(key, rows_behind(rows, drawn, [bags[i]])) for i, key in keys.ensemble.items())
    chosen = f"merge-{place.recipe.merge.weights}"
    entries = ledger.read_json(keys.corpus, "datasets.json")
    return Stand(
        version=version,
        model=keys.merges[place.recipe.merge.weights],
        score_name=chosen,
        corpus=keys.mined,
        tokens=keys.tokens,
        bags=keys.bags,
        behind=rows_behind(rows, drawn, list(bags.values())),
        members=members,
        scores={"base": keys.scores["base"], "current": keys.scores[chosen]},
        trained=tuple(entry["name"] for entry in entries if entry["rows"]),
    )


def after(job: Job, added: int, trained: Sequence[str]) -> Stand:
    """What the version that this update makes stands on.

    Args:
        added: rows of the new member's bag.
        trained: names of all datasets, old and new.
    """
    keys, stand = job.keys, job.stand
    return dataclasses.replace(
        stand,
        model=keys.merge,
        score_name=keys.name,
        corpus=keys.corpus,
        tokens=keys.tokens,
        bags=keys.bags,
        behind=stand.behind + added,
        members=(*stand.members, Trained(keys.member, added)),
        scores={"base": keys.scores["base"], "current": keys.scores[keys.name]},
        trained=tuple(trained),
    )
