"""A run: the stages in order, each skipped when the ledger already has what it makes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_ray.config import Mine, Recipe
from boom_ray.evaluate import sets as eval_sets
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import MERGES, Keys, World, derive_keys, missing
from boom_ray.recipe import load_recipe
from boom_ray.report.summary import write_summary
from boom_ray.runs import list_steps, look, resolve_run_dir, run_evaluation, with_found_miners

if TYPE_CHECKING:
    from boom_ray.merging import GramTask

Echo = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """Where a run's results lie; ``summary`` is what the report shows."""

    run_dir: Path
    published: Path
    report: Path
    summary: dict[str, Any]
    planned: int


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    ledger: Ledger
    world: World
    keys: Keys
    echo: Echo

    def has(self, key: Key) -> bool:
        return self.ledger.has(key)

    def path(self, key: Key) -> Path:
        return self.ledger.path(key)


def run(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    echo: Echo = print,
) -> RunResult:
    """Carry out a recipe: corpus, bags, members, search, merge, scores, publish. A second call finds all of it done.

    Args:
        recipe: a recipe or the path of one.
        overrides: ``dotted.key=value``, applied to a recipe file.
        run_dir: default ``$BOOM_RAY_HOME/NAME``, else ``runs/NAME`` (``~/boom_ray/runs/NAME`` in a Ray job).
        echo: receives one line of progress at a time.

    Raises:
        BoomError: a mistake in the recipe or the data, with what to do next. What was finished is kept.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, tuple(overrides))
    ledger = Ledger.open(resolve_run_dir(recipe, run_dir), recipe.name)
    world = look(recipe)
    run = _Run(recipe, ledger, world, derive_keys(recipe, world), echo)
    todo = missing(list_steps(run.recipe, ledger, run.keys))
    if todo:
        from boom_ray.session import hardware, ray_session

        echo(f"{recipe.name}: {len(todo)} steps to do in {ledger.root}")
        ledger.write_text("recipe.yaml", recipe.to_yaml())
        ledger.write_text("world.json", json.dumps(dataclasses.asdict(world), indent=1) + "\n")
        ledger.sweep()
        with ray_session():
            ledger.write_text("hardware.json", json.dumps(hardware()) + "\n")
            _carry_out(run)
    else:
        echo(f"{recipe.name}: nothing planned, everything is done.")
    summary, report = write_summary(ledger, run.keys, recipe)
    return RunResult(ledger.root, ledger.path(run.keys.published), report, summary, len(todo))


@dataclass(frozen=True)
class MineResult:
    """A corpus with mined negatives: where it lies, what was counted per dataset, and the settings that made it."""

    corpus: Path
    counts: dict[str, dict[str, int]]
    settings: Mine


def mine(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    echo: Echo = print,
) -> MineResult:
    """Carry out the corpus of a recipe and its ``corpus.mine``, nothing else; arguments as :func:`run`.

    A model may also be named as in the run directory: ``member-0`` or ``members/member-0-IDENTITY``.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, tuple(overrides))
    ledger = Ledger.open(resolve_run_dir(recipe, run_dir), recipe.name)
    recipe = with_found_miners(recipe, ledger.root)
    world = look(recipe)
    run = _Run(recipe, ledger, world, derive_keys(recipe, world), echo)
    if not run.has(run.keys.mined):
        from boom_ray.session import ray_session

        with ray_session():
            _corpus(run)
            _mine(run)
    assert recipe.corpus.mine is not None
    counts = ledger.manifest(run.keys.mined)["meta"]["counts"]
    return MineResult(ledger.path(run.keys.mined), counts, recipe.corpus.mine)


def _carry_out(run: _Run) -> None:
    """The story: every stage, in order."""
    if run.recipe.base.model:
        _start(run)  # first, so that a base that cannot be used costs no corpus
    _corpus(run)
    _mine(run)
    _start(run)
    _tokens(run)
    _bags(run)
    _warm_base(run)
    _members(run)
    _grams(run)
    _search(run)
    _final(run)


def _stage(run: _Run, key: Key, text: str) -> bool:
    """Whether a stage is to be done; says so."""
    if run.has(key):
        return False
    run.echo(f"[{time.strftime('%H:%M:%S')}] {text}")
    return True


@contextmanager
def _scratch(run: _Run, key: Key) -> Iterator[Path]:
    """Where a stage keeps its finished pieces: deleted when it is committed, found by the next run when it is not.

    Pieces of other artifacts of the kind belong to a recipe that has changed since and are deleted at once.
    """
    path = run.ledger.scratch(key.kind, key.name)
    for other in path.parent.iterdir():
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _corpus(run: _Run) -> None:
    key = run.keys.corpus
    if not _stage(run, key, "corpus: reading, checking, removing duplicates and evaluation texts"):
        return
    from boom_ray.data.corpus import build_corpus

    texts = eval_sets.texts(eval_sets.find_sets(run.recipe.evaluate.sets, None)) if run.recipe.evaluate.sets else ()
    with _scratch(run, key) as scratch, run.ledger.stage(key) as stage:
        counts = build_corpus(run.recipe.corpus, run.recipe.seed, texts, stage.path, scratch)
        stage.meta.update(counts=counts, devices="all")
    for name, count in counts.items():
        dropped = {k: v for k, v in count.items() if v and k not in ("rows_in", "rows")}
        because = ", ".join(f"{v} {k}" for k, v in dropped.items()) or "none dropped"
        run.echo(f"  {name}: {count['rows']} rows of {count['rows_in']} ({because})")


def _mine(run: _Run) -> None:
    settings, keys = run.recipe.corpus.mine, run.keys
    if settings is None or not _stage(run, keys.mined, f"mine: hard negatives by {', '.join(settings.models)}"):
        return
    from boom_ray.data.mining import mine, mine_task

    # its vectors are kept: other settings of `mine` use them again
    scratch = run.ledger.scratch("mine", keys.corpus.identity)
    task = mine_task(run.recipe, settings, run.world.miners, run.path(keys.corpus), scratch)
    with run.ledger.stage(keys.mined, inputs={"corpus": keys.corpus.identity}) as stage:
        counts = mine(task, stage.path, run.echo)
        stage.meta.update(counts=counts, devices="all")
    for name, count in counts.items():
        run.echo(f"  {name}: {count['negatives']} negatives for {count['mined']} of {count['rows']} rows")


def _start(run: _Run) -> None:
    key, base = run.keys.start, run.recipe.base
    if not _stage(run, key, "base: " + ("tokenizer and random weights" if base.build else f"importing {base.model}")):
        return
    from boom_ray import stages

    with run.ledger.stage(key) as stage:
        stages.make_start(base, run.path(run.keys.corpus), run.recipe.seed, stage.path)


def _tokens(run: _Run) -> None:
    keys = run.keys
    if not _stage(run, keys.tokens, "tokens: every text once"):
        return
    from boom_ray.data.corpus import tokenise
    from boom_ray.data.lengths import token_lengths
    from boom_ray.data.tokens import TokenStore

    with _scratch(run, keys.tokens) as scratch, run.ledger.stage(keys.tokens) as stage:
        done = tokenise(run.path(keys.mined), run.path(keys.start), run.recipe.base.max_tokens, stage.path, scratch)
        stage.meta.update(done, lengths=token_lengths(TokenStore(stage.path)), devices="all")


def _bags(run: _Run) -> None:
    keys, recipe = run.keys, run.recipe
    if not _stage(run, keys.bags, f"bags: {', '.join(rule.label for rule in keys.rules)}"):
        return
    from boom_ray.data.bagging import draw
    from boom_ray.data.membership import corpus_rows, counts
    from boom_ray.data.rules import dataset_rules

    rows = corpus_rows(run.path(keys.tokens))
    dev = (recipe.corpus.dev.fraction, recipe.corpus.dev.min_rows)
    rules = dataset_rules(run.ledger.read_json(keys.tokens, "datasets.json"))
    drawn = draw(rows, keys.rules, dev, recipe.seed, {name: rule.weight for name, rule in rules.items()})
    with run.ledger.stage(keys.bags) as stage:
        (stage.path / "draw.json").write_text(json.dumps(drawn.to_json(), indent=1))
        (stage.path / "counts.json").write_text(json.dumps(counts(rows, drawn), indent=1))


def _warm_base(run: _Run) -> None:
    keys = run.keys
    if keys.base == keys.start or not _stage(run, keys.base, "base: short contrastive warm-up"):
        return
    from boom_ray import stages
    from boom_ray.session import largest_node
    from boom_ray.train.work import warm_work

    task, batches = warm_work(run.recipe, run.ledger, keys, threads=largest_node())
    stages.warm(task, batches)


def _members(run: _Run) -> None:
    absent = [i for i, key in enumerate(run.keys.members) if not run.has(key)]
    if not absent:
        return
    from boom_ray.merging import GrowingGrams
    from boom_ray.progress import watch
    from boom_ray.session import node_resources
    from boom_ray.train.ensemble import train_ensemble
    from boom_ray.train.work import member_work, place_members

    work = {f"member-{i}": member_work(run.recipe, run.ledger, run.keys, i) for i in absent}
    placements, room = place_members(run.recipe, run.ledger, work, node_resources())
    shape = ", ".join(f"{p.name} on {p.width}" for p in placements)
    run.echo(f"[{time.strftime('%H:%M:%S')}] members: {shape} of {room.slots} worker slots")
    watched = [(work[p.name][0], work[p.name][0].meta["bag"]) for p in placements]
    grams = GrowingGrams(_gram_task(run))
    with watch(watched) as watcher:
        train_ensemble(run.ledger, work, placements, room, watcher.tick, grams.grow)
    grams.wait()


def _grams(run: _Run) -> None:
    if not _stage(run, run.keys.grams, "gram: inner products of all members, tensor by tensor"):
        return
    from boom_ray.merging import make_grams

    make_grams(_gram_task(run))


def _gram_task(run: _Run) -> GramTask:
    from boom_ray.merging import GramTask

    return GramTask(str(run.ledger.root), run.keys.members, run.keys.base, run.keys.grams)


def _search(run: _Run) -> None:
    settings = run.recipe.search
    if not _stage(run, run.keys.search, f"search: {settings.trials} trials of merge weights and scale on dev half A"):
        return
    from boom_ray.search.trials import search_weights

    with run.ledger.stage(run.keys.search) as stage:
        best = search_weights(run.recipe, run.ledger, run.keys, stage.path)
        stage.meta.update(best, devices=settings.actors)
    weights = ", ".join(f"{w:.3f}" for w in best["weights"])
    run.echo(
        f"  best of {settings.trials}: weights {weights}, scale {best['scale']:.3f}, objective {best['value']:.4f}"
    )


def _final(run: _Run) -> None:
    """Drive the final actor: merges, scores, publish."""
    keys, recipe = run.keys, run.recipe
    if run.has(keys.published):
        return
    from boom_ray.final import FinalTask
    from boom_ray.session import hardware, largest_node
    from boom_ray.stages import FinalHandle

    found = run_evaluation(recipe, run.ledger, keys)
    sets = found.sets(found.trained)
    task = FinalTask(recipe, str(run.ledger.root.resolve()), keys, tuple(sets), found.trained, largest_node())
    final = FinalHandle(task, gpus=min(1, hardware()["gpus"]))
    for name in MERGES:
        if _stage(run, keys.merges[name], f"final: merging with {name} weights"):
            final.merge(name, *merge_weights(recipe, run.ledger, keys, name))
    for name, key in keys.scores.items():
        if _stage(run, key, f"final: scoring {name} on {len(sets)} sets"):
            final.score(name, keys.models[name], key)
    run.echo(f"[{time.strftime('%H:%M:%S')}] final: publishing merge-{recipe.merge.weights}")
    summary, _ = write_summary(run.ledger, keys, recipe)
    final.publish(summary)


def merge_weights(recipe: Recipe, ledger: Ledger, keys: Keys, name: str) -> tuple[Sequence[float], float]:
    """(weights, scale) of one of the merges in the table."""
    ratios = [rule.ratio for rule in keys.rules]
    if name == "ratio":
        return ratios, 1.0
    if name == "uniform":
        return [1.0] * len(ratios), 1.0
    best: Mapping[str, Any] = ledger.manifest(keys.search)["meta"]
    return best["weights"], best["scale"]
