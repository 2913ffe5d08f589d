"""The steps of a run before its members train: corpus, mined negatives, start, tokens, bags, warm base; and what those
after them work on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boom_ray.config import Recipe
from boom_ray.evaluate import sets as eval_sets
from boom_ray.ledger import Key, Ledger
from boom_ray.plan import Keys, World
from boom_ray.runs import run_evaluation

if TYPE_CHECKING:
    from boom_ray.evaluate.sets import EvalSet
    from boom_ray.stages.final import FinalTask

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    recipe: Recipe
    ledger: Ledger
    world: World
    keys: Keys
    echo: Echo

    def has(self, key: Key) -> bool:
        return self.ledger.has(key)

    def path(self, key: Key) -> Path:
        return self.ledger.path(key)


def due(run: Run, key: Key, text: str) -> bool:
    """Whether a stage is to be done; says so."""
    if run.has(key):
        return False
    run.echo(f"[{time.strftime('%H:%M:%S')}] {text}")
    return True


@contextmanager
def scratch_of(run: Run, key: Key) -> Iterator[Path]:
    """Where a stage keeps its finished pieces: deleted when it is committed, found by the next run when it is not.

    Pieces of other artifacts of the kind belong to a recipe that has changed since and are deleted at once.
    """
    for other in run.ledger.children(f"scratch/{key.kind}") - {key.name}:
        run.ledger.drop(f"scratch/{key.kind}/{other}")
    yield run.ledger.scratch(key.kind, key.name)
    run.ledger.drop(f"scratch/{key.kind}/{key.name}")


def prepare(run: Run) -> None:
    """All that members need, in order: corpus, base, tokens, bags."""
    if run.recipe.base.model:
        make_start(run)  # first, so that a base that cannot be used costs no corpus
    make_corpus(run)
    sets_of(run)  # a cap that names no set, a folder called in_domain/ that is not: no member is trained in vain
    mine_negatives(run)
    make_start(run)
    make_tokens(run)
    draw_bags(run)
    warm_base(run)


def make_corpus(run: Run) -> None:
    key = run.keys.corpus
    if not due(run, key, "corpus: reading, checking, removing duplicates and evaluation texts"):
        return
    from boom_ray.data.corpus import build_corpus

    texts = eval_sets.texts(eval_sets.find_sets(run.recipe.evaluate.sets, None)) if run.recipe.evaluate.sets else ()
    with scratch_of(run, key) as scratch, run.ledger.stage(key) as stage:
        counts = build_corpus(run.recipe.corpus, run.recipe.seed, texts, stage.path, scratch)
        stage.meta.update(counts=counts, devices="all")
    tell_counts(counts, "rows", run.echo)


def tell_counts(counts: Mapping[str, Mapping[str, int]], what: str, echo: Echo) -> None:
    """A line for each dataset: how many rows it kept and why others were dropped."""
    for name, count in counts.items():
        dropped = {k: v for k, v in count.items() if v and k not in ("rows_in", "rows")}
        because = ", ".join(f"{v} {k}" for k, v in dropped.items()) or "none dropped"
        echo(f"  {name}: {count['rows']} {what} of {count['rows_in']} ({because})")


def mine_negatives(run: Run) -> None:
    settings, keys = run.recipe.corpus.mine, run.keys
    if settings is None or not due(run, keys.mined, f"mine: hard negatives by {', '.join(settings.models)}"):
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


def make_start(run: Run) -> None:
    key, base = run.keys.start, run.recipe.base
    if not due(run, key, "base: " + ("tokenizer and random weights" if base.build else f"importing {base.model}")):
        return
    from boom_ray.stages import tasks

    with run.ledger.stage(key) as stage:
        tasks.make_start(base, run.path(run.keys.corpus), run.recipe.seed, stage.path)


def make_tokens(run: Run) -> None:
    keys = run.keys
    if not due(run, keys.tokens, "tokens: every text once"):
        return
    from boom_ray.data.corpus import tokenise
    from boom_ray.data.lengths import token_lengths
    from boom_ray.data.tokens import TokenStore

    with scratch_of(run, keys.tokens) as scratch, run.ledger.stage(keys.tokens) as stage:
        done = tokenise(run.path(keys.mined), run.path(keys.start), run.recipe.base.max_tokens, stage.path, scratch)
        stage.meta.update(done, lengths=token_lengths(TokenStore(stage.path)), devices="all")
    if done["cut"]:
        most = run.recipe.base.max_tokens
        run.echo(f"  {done['cut']} of {done['texts']} texts are longer than base.max_tokens ({most}) and cut")


def draw_bags(run: Run) -> None:
    keys, recipe = run.keys, run.recipe
    if not due(run, keys.bags, f"bags: {', '.join(rule.label for rule in keys.rules)}"):
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


def warm_base(run: Run) -> None:
    keys = run.keys
    if keys.base == keys.start or not due(run, keys.base, "base: short contrastive warm-up"):
        return
    from boom_ray.cluster.session import largest_node
    from boom_ray.stages import tasks
    from boom_ray.train.work import warm_work

    task, batches = warm_work(run.recipe, run.ledger, keys, threads=largest_node())
    tasks.warm(task, batches)


def final_task(run: Run) -> FinalTask:
    """What merging and scoring a run's models work on, with the sets that they are scored on."""
    return task_on(run, *sets_of(run))


def sets_of(run: Run) -> tuple[list[EvalSet], tuple[str, ...]]:
    """The sets that a run's models are scored on, and the datasets of its corpus, which must be there.

    Raises:
        BoomError: as :meth:`boom_ray.runs.Evaluation.sets`.
    """
    found = run_evaluation(run.recipe, run.ledger, run.keys)
    return found.sets(found.trained), found.trained


def task_on(run: Run, sets: Sequence[EvalSet] = (), trained: tuple[str, ...] = ()) -> FinalTask:
    """The same on sets that the caller chooses; merging needs none."""
    from boom_ray.cluster.session import largest_node
    from boom_ray.stages.final import FinalTask

    return FinalTask(run.recipe, str(run.ledger.root.resolve()), run.keys, tuple(sets), trained, largest_node())
