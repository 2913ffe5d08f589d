"""``boom-ray corpus``: what became of the rows, in which order a member gets them, and what its bag leaves out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from boom_ray.inspection import Run

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""What became of the corpus: rows by dataset and member, the order of batches, rows out-of-bag.

    Start with:  boom-ray corpus inspect runs/NAME
    """,
)

Where = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or the recipe of one.")]
Member = Annotated[int, typer.Option("--member", help="Number of the member.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override one key of the recipe, as in `boom-ray run`. Repeatable.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all of it here, too.")]

_CLEANED = ("rows_in", "rejected", "duplicates", "near_duplicates", "decontaminated", "capped", "rows")
_ACCOUNT = ("rows_in", "used", "out_of_bag", "dev", "tail", "cut", "removed", "drawn")


@app.command()
def inspect(where: Where, overrides: Overrides = None, json_file: JsonFile = None) -> None:
    """Per dataset: rows read, dropped and kept, tokens, lengths; per member: where every row went.

    Example:  boom-ray corpus inspect runs/quickstart --json corpus.json
    """
    from boom_ray import inspection

    told = inspection.corpus(_open(where, overrides))
    _write_json(json_file, told)
    for line in inspect_lines(told):
        typer.echo(line)


@app.command()
def schedule(
    where: Where,
    member: Member = 0,
    steps: Annotated[int, typer.Option(help="Steps to print.")] = 20,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """The order of a member's batches, with a digest of every step's rows that any number of workers repeats.

    Example:  boom-ray corpus schedule runs/quickstart --member 1 --steps 5 --set train.schedule=two_stage
    """
    from boom_ray import inspection

    told = inspection.schedule(_open(where, overrides), member)
    _write_json(json_file, told)
    for line in schedule_lines(told, steps):
        typer.echo(line)


@app.command("out-of-bag")
def out_of_bag(
    where: Where,
    member: Member = 0,
    dataset: Annotated[str | None, typer.Option(help="Only this dataset.")] = None,
    limit: Annotated[int, typer.Option(help="Rows to print.")] = 20,
    overrides: Overrides = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of them here, one JSON a line.")] = None,
) -> None:
    """The training rows that a member has not seen, as one JSON object a line.

    Example:  boom-ray corpus out-of-bag runs/quickstart --member 0 --dataset python_functions --limit 3
    """
    from boom_ray import inspection

    rows = inspection.out_of_bag(_open(where, overrides), member, dataset)
    if json_file is None:
        for row in islice(rows, limit):
            typer.echo(json.dumps(row, ensure_ascii=False))
        return
    with open(json_file, "w", encoding="utf-8") as stream:
        count = 0
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    typer.echo(f"{count:,} rows: {json_file}")


def inspect_lines(told: Mapping[str, Any]) -> list[str]:
    """Tables of the datasets, of their lengths, and of every member."""
    from boom_ray.data.accounts import CLEANED

    datasets = told["datasets"]
    lines = _table("dataset", (*_CLEANED, "dev_a", "dev_b", "tokens", "longest"), datasets)
    lines += ["", "rows by tokens (query, positives and negatives together), up to:"]
    bounds = sorted({bound for entry in datasets.values() for bound, _ in entry.get("histogram", ())})
    by_length = {name: {str(b): c for b, c in entry.get("histogram", ())} for name, entry in datasets.items()}
    lines += _table("dataset", [str(bound) for bound in bounds], by_length)
    for member in told["members"]:
        accounts = {n: {**a, "removed": sum(a[place] for place in CLEANED)} for n, a in member["datasets"].items()}
        lines += ["", f"{member['name']}: {member['bag']}, {member['steps']:,} steps; where the rows went, and draws"]
        lines += _table("dataset", _ACCOUNT, accounts)
        shared = {name: {f"with {i}": n for i, n in enumerate(account.get("shared", ()))}
                  for name, account in member["datasets"].items()}  # fmt: skip
        lines += ["rows shared with other members:", *_table("dataset", list(next(iter(shared.values()), {})), shared)]
    return lines


def schedule_lines(told: Mapping[str, Any], most: int) -> list[str]:
    """The first steps, and the totals."""
    totals = told["totals"]
    lines = [f"{told['member']}: {told['bag']}, {told['schedule']}, {totals['steps']:,} steps"]
    lines.append(f"{'step':>8} {'epoch':>6} {'rows':>7}  {'digest':16}  dataset")
    for step in told["steps"][:most]:
        own = "" if step["in_batch"] else " (own negatives only)"
        lines.append(
            f"{step['step']:>8,} {step['epoch']:>6} {step['rows']:>7,}  {step['digest']}  {step['dataset']}{own}"
        )
    if totals["steps"] > most:
        lines.append(f"{'...':>8}")
    lines += ["", *_table("dataset", ("steps", "rows", "dropped"), told["datasets"], total=False)]
    end = "; train.max_steps ends the run early" if totals["ended_early"] else ""
    lines.append(
        f"{totals['rows']:,} rows in all, {totals['dropped']:,} dropped with tails, digest {totals['digest']}{end}"
    )
    return lines


def _table(head: str, columns: Iterable[str], rows: Mapping[str, Mapping[str, Any]], total: bool = True) -> list[str]:
    """Right-aligned numbers; a column that no row has is left out, a total is added where there are several rows."""
    kept = [column for column in columns if any(row.get(column) is not None for row in rows.values())]
    whole: dict[str, Mapping[str, Any]] = dict(rows)
    if total and len(rows) > 1:
        add = {c: (max if c == "longest" else sum)(row.get(c) or 0 for row in rows.values()) for c in kept}
        whole["all"] = add
    widths = [max(len(c), *(len(_number(row.get(c))) for row in whole.values())) for c in kept]
    name = max(len(head), *map(len, whole), 0)
    lines = [f"{head:{name}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(kept, widths, strict=True))]
    for label, row in whole.items():
        cells = (f"{_number(row.get(c)):>{w}}" for c, w in zip(kept, widths, strict=True))
        lines.append(f"{label:{name}}  " + "  ".join(cells))
    return lines


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _open(where: Path, overrides: list[str] | None) -> Run:
    from boom_ray.inspection import Run
    from boom_ray.runs import open_run

    return Run(*open_run(where, overrides or ()))


def _write_json(file: Path | None, value: Any) -> None:
    if file is not None:
        file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
