"""``boom-ray study``: is a merge of bags better, at which cost, against which controls?"""

from __future__ import annotations

from typing import Annotated

import typer

from boom_ray.commands.plan import Overrides, RecipeArgument, RunDir
from boom_ray.redact import redact
from boom_ray.stores.mirrors import told


def study(
    recipe: RecipeArgument,
    only: Annotated[
        str | None, typer.Option(help="Carry out these conditions alone now: their names, with commas between them.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Carry out the first so many seeds of each condition now.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be trained and what it costs; train nothing.")
    ] = False,
    overrides: Overrides = None,
    run_dir: RunDir = None,
) -> None:
    """Carry out the conditions of a recipe (its section study) on one corpus, and report them side by side.

    Every member is trained once and shared between conditions. A study that is stopped goes on where it was; a
    condition that is added trains only what is new. The page is written anew after every few (docs/study.md).

    Examples:

      boom-ray study jobs/recipes/study.yaml --plan

      boom-ray study jobs/recipes/study.yaml --seeds 1

      boom-ray study jobs/recipes/study.yaml --only bls-1.0,boom-20-100
    """
    from boom_ray.study_run import Limits, plan_study
    from boom_ray.study_run import study as carry_out

    names = tuple(name.strip() for name in only.split(",")) if only else ()
    limits = Limits(names, seeds)
    if plan:
        for line in plan_study(recipe, overrides=overrides or (), run_dir=run_dir, limits=limits):
            typer.echo(line)
        return
    result, page = carry_out(recipe, overrides=overrides or (), run_dir=run_dir, limits=limits, echo=_echo)
    if result is not None and page is not None:
        finished = sum(len(condition.seeds) for condition in result.conditions)
        typer.echo(f"{finished} of {finished + len(result.pending)} conditions (seeds counted) are finished.")
        typer.echo(f"report: {told(page)}")


def _echo(line: str) -> None:
    print(redact(line), flush=True)
