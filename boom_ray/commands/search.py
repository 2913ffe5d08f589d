"""``boom-ray search``: merge weights, sampling ratios, and what searches have found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from boom_ray.commands import analyze, ratios
from boom_ray.commands.plan import Overrides, RunDir
from boom_ray.config import BoomError
from boom_ray.stores.mirrors import told

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Search how members are merged (weights), what they are trained on (ratios), and look at searches (analyze).

    docs/search.md says what is searched, by what it is judged, and what the numbers mean.
    """,
)


@app.command()
def weights(
    where: Annotated[Path, typer.Argument(help="Run directory whose members are trained, or its recipe.")],
    searcher: Annotated[
        str | None, typer.Option(help="tpe, random, grid, self_positioning or gradient. Default: the recipe's.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Points to judge.")] = None,
    budget: Annotated[float | None, typer.Option(help="Device-seconds after which no further round begins.")] = None,
    members: Annotated[
        str | None, typer.Option(help="Numbers of the members to merge, as in 0,2,4. Default: all of the run.")
    ] = None,
    groups: Annotated[str | None, typer.Option(help="Weights by tensor group: none, coarse or layers.")] = None,
    objective: Annotated[str | None, typer.Option(help="loss or metric.")] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write all merges of the table here, to score them with `boom-ray evaluate`.")
    ] = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of search.json here, too.")] = None,
) -> None:
    """Search merge weights, scale and method over members that are trained; prints the table with all baselines.

    Members stay in memory: a trial costs its encoding. Trials are judged on dev half A and on rows in no member's bag;
    the table reports half B with intervals. Killed and called again, it goes on from its last trial. The next
    `boom-ray run` with the same settings merges and publishes what was found.

    Examples:

      boom-ray search weights runs/quickstart --trials 100

      boom-ray search weights recipe.yaml --searcher gradient --groups coarse --members 1,2,4

      boom-ray search weights runs/quickstart --set search.drop_members=true --set search.methods='[linear, karcher]'
    """
    from boom_ray.search.outcome import table_lines
    from boom_ray.weight_search import search_run, write_models

    given: dict[str, Any] = {"searcher": searcher, "trials": trials, "budget_seconds": budget}
    given |= {"groups": groups, "objective": objective}
    settings = [f"search.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    chosen = None if members is None else parse_members(members)
    changed = (*(overrides or ()), *settings)
    search = search_run(where, overrides=changed, run_dir=run_dir, members=chosen, echo=_echo)
    if not search.new:
        typer.echo("nothing to do: this search is in the ledger.")
    for line in table_lines(search.found):
        typer.echo(line)
    typer.echo(f"search: {told(search.folder)}")
    if write:
        write_models(search, write, _echo)
        typer.echo(
            f"on the run's sets, in and out of domain: boom-ray evaluate {write}/* --run-dir {search.run.ledger}"
        )
    if json_file:
        json_file.write_text(json.dumps(search.found, indent=1) + "\n")


app.command()(ratios.ratios)
app.command()(analyze.analyze)


def parse_members(text: str) -> list[int]:
    """Numbers separated by commas.

    Raises:
        BoomError: something else.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise BoomError(f"--members takes numbers of members separated by commas, as in 0,2,4; got '{text}'.")
    return [int(part) for part in parts]


def _echo(line: str) -> None:
    print(line, flush=True)
