"""The rows of an update: the new ones cleaned, joined to the old ones, tokenised, and the new member's bag drawn."""

from __future__ import annotations

import json

from boom_ray.config import Recipe
from boom_ray.stages.preparation import Run, due, scratch_of, tell_counts
from boom_ray.update import union
from boom_ray.update.keys import TableKeys, pair_keys
from boom_ray.update.task import Job


def as_run(job: Job, keys: TableKeys, recipe: Recipe | None = None) -> Run:
    """The update as a run with these keys, for the stages of a run; all its members are needed."""
    recipe = recipe or job.recipe
    resources = recipe.resources.model_copy(update={"min_members": None})
    return Run(recipe.model_copy(update={"resources": resources}), job.ledger, job.world, keys, job.echo)


def pair_of(job: Job) -> TableKeys:
    """The update as a run of two members: the current model and what is merged into it."""
    return pair_keys(job.keys, job.stand, job.run, job.settings.core)


def make_fresh(job: Job) -> None:
    """The corpus of the new rows alone: checked, without evaluation texts and without what the old corpus has."""
    key = job.keys.fresh
    if not due(as_run(job, pair_of(job)), key, "new data: reading, checking, removing evaluation texts and old rows"):
        return
    from boom_ray.data.corpus import build_corpus
    from boom_ray.data.membership import corpus_rows
    from boom_ray.evaluate import sets as eval_sets

    recipe = job.rows_settings
    texts = eval_sets.texts(eval_sets.find_sets(job.folders, None, strict=False)) if job.folders else ()
    old = corpus_rows(job.path(job.stand.tokens))
    inputs = {"old": job.stand.corpus.identity}
    with scratch_of(as_run(job, pair_of(job)), key) as scratch, job.ledger.stage(key, inputs) as stage:
        counts = build_corpus(recipe.corpus, recipe.seed, texts, stage.path, scratch, (old.ids, old.names))
        stage.meta.update(counts=counts, devices="all")
    tell_counts(counts, "new rows", job.echo)


def join_rows(job: Job) -> None:
    """Old and new rows as one corpus."""
    if job.has(job.keys.corpus):
        return
    inputs = {"old": job.stand.corpus.identity, "new": job.keys.fresh.identity}
    with job.ledger.stage(job.keys.corpus, inputs) as stage:
        union.join_corpora(job.path(job.stand.corpus), job.path(job.keys.fresh), stage.path)


def make_tokens(job: Job) -> None:
    """Tokens of the new rows, beside those of the old."""
    keys, run = job.keys, as_run(job, pair_of(job))
    if not due(run, keys.tokens, "tokens: of the new rows"):
        return
    from boom_ray.data.corpus import tokenise
    from boom_ray.data.lengths import token_lengths
    from boom_ray.data.tokens import TokenStore

    old, most = job.path(job.stand.tokens), job.recipe.base.max_tokens
    with scratch_of(run, keys.tokens) as scratch, job.ledger.stage(keys.tokens) as stage:
        rows = union.new_rows(job.path(keys.corpus), union.count_shards(old), scratch / "rows")
        done = tokenise(rows, job.path(job.run.start), most, stage.path, scratch / "shards")
        union.link_tokens(old, stage.path)
        before = job.ledger.manifest(job.stand.tokens)["meta"]
        whole = {name: before.get(name, 0) + number for name, number in done.items()}
        stage.meta.update(whole, added=done, lengths=token_lengths(TokenStore(stage.path)), devices="all")
    if done["cut"]:
        job.echo(f"  {done['cut']} of {done['texts']} new texts are longer than base.max_tokens ({most}) and cut")


def draw_bags(job: Job) -> None:
    """The new member's bag, frozen; and dev rows of the new datasets."""
    keys, core = job.keys, job.settings.core
    if job.has(keys.bags):
        return
    from boom_ray.data.bagging import Draw
    from boom_ray.data.core import UPDATE, draw_update, rows_behind
    from boom_ray.data.membership import corpus_rows, counts

    rows, old = corpus_rows(job.path(keys.tokens)), len(corpus_rows(job.path(job.stand.tokens)).dataset)
    before = Draw.from_json(job.ledger.read_json(job.stand.bags, "draw.json"))
    dev = job.recipe.corpus.dev
    drawn = draw_update(rows, before, old, core, (dev.fraction, dev.min_rows))
    with job.ledger.stage(keys.bags) as stage:
        (stage.path / "draw.json").write_text(json.dumps(drawn.to_json(), indent=1))
        (stage.path / "counts.json").write_text(json.dumps(counts(rows, drawn), indent=1))
        seen = rows_behind(rows, drawn, [drawn.bags[UPDATE]])
        stage.meta.update(old=old, rows=len(rows.dataset), in_bag=seen)
    job.echo(f"  bag of the new member: {seen:,} rows, {100 * core:.3g} % of the old ones and all new ones")
