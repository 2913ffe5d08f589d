"""``boom-ray plan``: the steps of a run with their cost, and when its members would train on a cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from boom_ray.config import Recipe
    from boom_ray.ledger import Ledger
    from boom_ray.plan import Keys, Step
    from boom_ray.resources import Job, Speed
    from boom_ray.train.traffic import Sizes

RecipeArgument = Annotated[Path, typer.Argument(help="Recipe file (YAML); shipped ones are in jobs/recipes/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one key, e.g. --set train.epochs=2 --set bags.ratios='[0.5, 1]'. Repeatable."),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        help="Run directory, also s3://BUCKET/NAME or gs://... Default: $BOOM_RAY_HOME/NAME, else runs/NAME "
        "(~/boom_ray/runs/NAME in a Ray job).",
    ),
]
Replan = Annotated[
    bool,
    typer.Option(
        "--replan", help="Give members that are not finished a new width, and those that failed for good a new start."
    ),
]


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Show when members would train on this cluster: NODESxDEVICES, as in 4x8 or 4x8xH100, or auto for the "
            "Ray cluster that is running."
        ),
    ] = None,
    replan: Replan = False,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of the corpus, while it has not been made.")] = None,
    rows_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="Speed of one worker. Default: as members of this run have shown.")
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option(min=1, help="Of the model, as in 0.6e9: for the network's volume, while it is not here."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of it here, too.")] = None,
) -> None:
    """List the steps that a run would take, with their cost, and what is done already.

    Examples:

      boom-ray plan jobs/recipes/quickstart.yaml --set train.batch_size=64

      boom-ray plan recipe.yaml --cluster 4x8xH100 --set resources.price=2.5 --rows 1700000 --rows-per-second 12
          --parameters 0.6e9
    """
    from boom_ray.runs import list_steps, look_at

    parsed, ledger, keys = look_at(recipe, overrides=overrides or (), run_dir=run_dir, replan=replan)
    steps = list_steps(parsed, ledger, keys)
    todo = [step for step in steps if not step.done]
    typer.echo(f"{parsed.name}: {len(todo)} of {len(steps)} steps to do" if todo else f"{parsed.name}: nothing to do")
    for line in [*plan_lines(steps), *unfetched_lines(parsed, ledger, keys), *lost_lines(ledger, keys)]:
        typer.echo(line)
    written: dict[str, Any] = {"name": parsed.name, "steps": [asdict(step) for step in steps]}
    if cluster is not None:
        from boom_ray.train.placing import Assumed, forecast_jobs, planned_nodes

        jobs, speed = forecast_jobs(parsed, ledger, keys, Assumed(rows, rows_per_second), replan)
        members = _EnsembleShown(parsed, keys, steps, parameters)
        typer.echo("")
        written["ensemble"] = members.show(jobs, planned_nodes(cluster, parsed), speed)
    if json_file:
        json_file.write_text(json.dumps(written, indent=1) + "\n")


@dataclass(frozen=True)
class _EnsembleShown:
    """What is printed of the members on a cluster, and written as JSON."""

    recipe: Recipe
    keys: Keys
    steps: Sequence[Step]
    parameters: float | None

    def show(self, jobs: Sequence[Job], nodes: Sequence[Mapping[str, float]], speed: Speed | None) -> dict[str, Any]:
        from boom_ray.report.gantt import gantt_lines, network_lines
        from boom_ray.train.placing import ensemble_plan
        from boom_ray.train.traffic import traffic

        price = self.recipe.resources.price
        members = ensemble_plan(self.recipe, jobs, nodes, speed)
        bags = {f"member-{i}": rule.label for i, rule in enumerate(self.keys.rules)}
        for line in gantt_lines(members, bags, price) if jobs else ["No member is left to train."]:
            typer.echo(line)
        written = members.to_json(price)
        if not (jobs and members.timed):
            return written
        if (sizes := self._sizes()) is None:
            typer.echo("network: not known while the base is not here: give --parameters")
            return written
        volume = traffic(self.recipe, members.placements, {job.name: job.work for job in jobs}, sizes)
        for line in network_lines(volume):
            typer.echo(line)
        return {**written, "network": asdict(volume)}

    def _sizes(self) -> Sizes | None:
        from boom_ray.train.traffic import STORED, Sizes

        costs = {step.name: step.cost for step in self.steps}
        stored, (tokens, rows) = costs["start"].bytes, (costs["tokens"].tokens, costs["tokens"].rows)
        if not (self.parameters or stored):
            return None
        parameters = self.parameters or (stored or 0) / STORED
        return Sizes.assumed(self.recipe, parameters, tokens / rows if tokens and rows else None)


def unfetched_lines(recipe: Recipe, ledger: Ledger, keys: Keys) -> list[str]:
    """What the run fetches from the Hugging Face hub: a plan does without it."""
    from boom_ray.config.corpus import FilesSource

    files = [source for source in recipe.corpus.datasets if isinstance(source, FilesSource)]
    remote = sum(source.origin.startswith("hf://") for source in files) if not ledger.has(keys.corpus) else 0
    model = recipe.base.model
    named = [f"{remote} datasets"] if remote else []
    if model and not Path(model).is_dir() and not ledger.has(keys.start):
        named.append(f"the base {model}")
    return [f"Not fetched yet: {' and '.join(named)}; the run asks the Hugging Face hub for them."] if named else []


def lost_lines(ledger: Ledger, keys: Keys) -> list[str]:
    """The members that the run goes on without, and why."""
    from boom_ray.records import final_failure

    told = ((i, final_failure(ledger, keys.members[i])) for i in keys.lost)
    return [
        f"! member-{i} failed for good and is left out ({failure}). --replan starts it again." for i, failure in told
    ]


def plan_lines(steps: Any) -> list[str]:
    """One line per step: state, name, artifact, cost."""
    lines = [f"  {'step':24} {'artifact':44} {'rows':>9} {'tokens':>11} {'steps':>7} {'MB':>9} {'device-h':>9}"]
    for step in steps:
        cost = step.cost
        megabytes = cost.bytes and round(cost.bytes / 1e6, 1)
        hours = cost.device_hours and round(cost.device_hours, 4)
        numbers = f"{_count(cost.rows):>9} {_count(cost.tokens):>11} {_count(cost.steps):>7} "
        numbers += f"{_count(megabytes):>9} {_count(hours):>9}"
        state = "x" if step.done else "-"
        lines.append(f"{state} {step.name:24} {step.key.kind + '/' + step.key.name:44} {numbers}")
    lines.append("x done, - to do; an empty cost is known once the steps before it are done.")
    return lines


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,}"
