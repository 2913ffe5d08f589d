"""``boom-ray search ratios``: which sampling ratios are worth their training?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from boom_ray.commands.plan import Overrides, RecipeArgument, RunDir
from boom_ray.config import BoomError
from boom_ray.stores.mirrors import told


def ratios(
    recipe: RecipeArgument,
    candidates: Annotated[
        str | None, typer.Option("--ratios", help="Candidates, in percent or as shares: 20,40,60 or 0.2,0.4,0.6.")
    ] = None,
    members: Annotated[str | None, typer.Option(help="Members of a set: 2-5, or 3.")] = None,
    copies: Annotated[int | None, typer.Option(help="Members of one ratio in a set at most.")] = None,
    trials: Annotated[int | None, typer.Option(help="Sets that are tried.")] = None,
    rungs: Annotated[int | None, typer.Option(help="Lengths of training; 1: every member trains to its end.")] = None,
    eta: Annotated[int | None, typer.Option(help="One of so many trials of a rung is trained on.")] = None,
    weights: Annotated[str | None, typer.Option(help="Merge weights of a set: ratio or uniform.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Device-seconds of all training and judging; no trial begins beyond it.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be trained and what it costs; train nothing.")
    ] = False,
    overrides: Overrides = None,
    run_dir: RunDir = None,
) -> None:
    """Search sets of sampling ratios: members are trained once, whatever number of sets hold them, and bad sets stop.

    A trial is a set of ratios. Its members train to a share of their steps, are merged in memory and judged on dev half
    A; only the best sets are trained on (ASHA), from the checkpoints of their members. Options override ratio_search
    in the recipe. A search that is interrupted goes on where it was.

    Examples:

      boom-ray search ratios jobs/recipes/quickstart.yaml --ratios 20,40,60,80,100 --members 2-5 --trials 12 --plan

      boom-ray search ratios recipe.yaml --ratios 40,60,80,100 --members 2-4 --budget 7200
    """
    from boom_ray.ratio_run import search_ratios

    given = {
        "ratios": None if candidates is None else read_ratios(candidates),
        "members": None if members is None else read_range(members),
        "copies": copies,
        "trials": trials,
        "rungs": rungs,
        "eta": eta,
        "weights": weights,
        "budget_seconds": budget,
    }
    settings = [f"ratio_search.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    changed = (*(overrides or ()), *settings)
    found = search_ratios(recipe, overrides=changed, run_dir=run_dir, plan_only=plan, echo=typer.echo)
    if found is not None:
        result, where = found
        for line in result_lines(result):
            typer.echo(line)
        typer.echo(f"search: {told(where)}")


def read_ratios(text: str) -> list[float]:
    """``20,40`` or ``0.2,0.4`` as shares: all are percent where one is above 1.

    Raises:
        BoomError: no numbers.
    """
    try:
        numbers = [float(part.strip().removesuffix("%")) for part in text.split(",")]
    except ValueError:
        raise BoomError(f"--ratios {text!r}: give numbers with commas between them, as in 20,40,60,80,100.") from None
    percent = "%" in text or any(number > 1 for number in numbers)
    return [round(number / 100, 6) for number in numbers] if percent else numbers


def read_range(text: str) -> list[int]:
    """``2-5`` or ``3``.

    Raises:
        BoomError: neither.
    """
    found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    if found is None:
        raise BoomError(f"--members {text!r}: give the least and the most members of a set, as in 2-5, or one number.")
    return [int(found[1]), int(found[2] or found[1])]


def result_lines(found: Mapping[str, Any]) -> list[str]:
    """The best set, what half B says of it and of others, and how to train with it."""
    from boom_ray.report.text import grid

    best = found["best"]
    share = f"{100 * found['shares'][best['rung']]:.3g} %"
    trained = "trained to the end" if best["complete"] else f"trained to {share} of its steps only"
    lines = ["", f"best: {best['name']}, {best['value']:.4f} on dev half A, {trained}"]
    if found["stopped"]:
        lines.append(f"stopped by the budget: {found['stopped']}")
    count = sum(t["landed"] for t in found["trainings"])
    lines.append(
        f"spent: {found['spent']:,.0f} device-seconds; {count} trainings of "
        f"{len({t['member'] for t in found['trainings']})} members"
    )
    if found["table"]:
        head = ["trained to the end", "half A", "half B", "metric on B", "to the best [95 %]"]
        rows = [_cells(row) for row in found["table"]]
        lines += ["", *grid([head], rows).split("\n")]
        lines.append("Half A chose; half B is the report. Both: the objective, lower is better; the metric in points.")
    lines += ["", "To train with it, put this into the recipe (its members are taken over as they are):"]
    lines.append(f"bags: {{ratios: {best['ratios']}, numbers: {best['numbers']}}}")
    return lines


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [row["name"], _number(row["a"]), _number(row["b"]), _points(row["metric_b"]), _to_best(row)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _to_best(row: Mapping[str, Any]) -> str:
    if row["to_best"] is None:
        return "-"
    difference, low, high = (100 * value for value in row["to_best"])
    return f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"
