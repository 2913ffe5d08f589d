"""``boom-ray update`` and ``boom-ray history``: new data into a published model, and the chain of its versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from boom_ray.commands.plan import Overrides
from boom_ray.stores.mirrors import told

RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Run directory of the model. Default: update.model, else that of the recipe's run."),
]


def update(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe with a section `update`, or that section alone (docs/update.md).")
    ],
    data: Annotated[
        list[str] | None, typer.Option(help="New data: file, folder or pattern, in the place of update.datasets.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Run directory (its newest version), or one version: RUN/published/NAME.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="How the new member joins: fixed (0.5), mass (by rows), searched, or ensemble.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="What the new member starts from: base or current.")] = None,
    core: Annotated[float | None, typer.Option(help="Share of every old dataset in its bag; default 0.4.")] = None,
    share: Annotated[float | None, typer.Option(help="Its weight, with weights fixed; default 0.5.")] = None,
    max_drift: Annotated[
        float | None, typer.Option(help="Bound on the mean of 1 - cosine of old dev texts: lowers the weight to it.")
    ] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="List the steps that it would take, and stop.")] = False,
    against_retrain: Annotated[
        bool, typer.Option("--against-retrain", help="Train all members again on old and new rows, and compare.")
    ] = False,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here, too.")] = None,
) -> None:
    """Take new data into a published model: one light member, one merge, scores, drift and cost; the next version.

    Only new rows are checked, cleaned and tokenised. The version before stays as it is. A second call with the same
    data does nothing; a call after a kill goes on. A model whose files have changed is refused.

    Examples:

      boom-ray update recipe.yaml --data new/

      boom-ray update recipe.yaml --weights mass --max-drift 0.02

      boom-ray update recipe.yaml --against-retrain
    """
    from boom_ray.report.update import format_update
    from boom_ray.update.pipeline import update as carry_out

    given: dict[str, Any] = {"model": model, "weights": weights, "init": init, "core": core, "share": share}
    given |= {"max_drift": max_drift, "datasets": [{"path": path} for path in data] if data else None}
    settings = [f"update.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    changes = (*(overrides or ()), *settings)
    if only_plan:
        for line in _plan(recipe, changes, run_dir):
            typer.echo(line)
        return
    result = carry_out(recipe, overrides=changes, run_dir=run_dir, against_retrain=against_retrain, echo=_echo)
    if result.report is not None:
        typer.echo("")
        typer.echo(format_update(result.summary))
        typer.echo(f"report: {told(result.report)}")
    if json_file is not None:
        json_file.write_text(json.dumps(result.summary, indent=1) + "\n", encoding="utf-8")
    typer.echo(f"published: {told(result.published)}")


def history(
    model: Annotated[Path, typer.Argument(help="Run directory (its newest version), or a version in its published/.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here, too.")] = None,
) -> None:
    """Print the chain of a model: data, weights, cost, scores and drift of every version.

    Examples:

      boom-ray history runs/quickstart

      boom-ray history runs/quickstart/published/quickstart-v2-0123456789abcdef
    """
    from boom_ray.report.update import format_history
    from boom_ray.update.history import history as rows_of

    rows = rows_of(model)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    typer.echo(format_history(rows))


def _plan(recipe: Path, changes: tuple[str, ...], run_dir: Path | None) -> list[str]:
    from boom_ray.update.task import load_job, steps

    job = load_job(recipe, changes, run_dir, _echo)
    listed = steps(job)
    todo = sum(not step.done for step in listed)
    head = f"{job.recipe.name}: {job.keys.name} from {job.stand.version.key.name}, "
    lines = [head + (f"{todo} of {len(listed)} steps to do" if todo else "nothing to do")]
    lines += [f"{'x' if step.done else '-'} {step.name:24} {step.key.kind}/{step.key.name}" for step in listed]
    return [*lines, "x done, - to do."]


def _echo(line: str) -> None:
    print(line, flush=True)
