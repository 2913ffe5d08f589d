"""``boom-ray search analyze``: what did a search find, and does it hold?"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boom_ray.config import BoomError

if TYPE_CHECKING:
    from boom_ray.search.analysis import Found


def analyze(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories, searches in them, trials.jsonl files, or Ray Tune experiment folders."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the page, the figures and the tables.")] = Path("analysis"),
    table: Annotated[str, typer.Option(help="Tables as csv or parquet.")] = "csv",
    take: Annotated[
        str, typer.Option(help="Which judgement stands for a trial that has several (rungs, reports): last or best.")
    ] = "last",
    metric: Annotated[str | None, typer.Option(help="Of a Ray Tune experiment. Default: its own.")] = None,
    mode: Annotated[str | None, typer.Option(help="Of a Ray Tune experiment: min or max. Default: min.")] = None,
) -> None:
    """Analyse searches of weights and of ratios, and Ray Tune experiments; several are compared.

    Writes one self-contained page, PNG figures (importance, parallel coordinates, parameters against the objective,
    convergence, distance from uniform and ratio weights, half B, ID against OOD) and a tidy table, a row per trial.

    Examples:

      boom-ray search analyze runs/quickstart

      boom-ray search analyze runs/tpe runs/random --out comparison --table parquet

      boom-ray search analyze ~/ray_results/my_experiment --metric loss --mode min --take best
    """
    _check(table, take, mode)
    from boom_ray.report.search_page import format_analysis, write_analysis
    from boom_ray.search.analysis import read_searches

    found = [search for run in runs for search in read_searches(run, take, metric, mode)]  # type: ignore[arg-type]
    searches = _named(found)
    typer.echo(
        f"reading {sum(len(s.trials) for s in searches)} trials of {', '.join(s.name for s in searches)}", err=True
    )
    files = write_analysis(searches, out, table)
    typer.echo(format_analysis(searches))
    typer.echo(f"\npage: {files[-1]}\ntable: {files[0]}")


def _check(table: str, take: str, mode: str | None) -> None:
    for option, value, known in (("table", table, ("csv", "parquet")), ("take", take, ("last", "best"))):
        if value not in known:
            raise BoomError(f"--{option} is {' or '.join(known)}, not {value!r}.")
    if mode not in (None, "min", "max"):
        raise BoomError(f"--mode is min or max, not {mode!r}.")


def _named(searches: list[Found]) -> list[Found]:
    """Each with a name of its own."""
    counted, seen = Counter(found.name for found in searches), Counter[str]()
    named = []
    for found in searches:
        seen[found.name] += 1
        own = f"{found.name} {seen[found.name]}" if counted[found.name] > 1 else found.name
        named.append(replace(found, name=own))
    return named
