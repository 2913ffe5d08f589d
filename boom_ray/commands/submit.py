"""``boom-ray submit``: a run on a cluster, followed to its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from boom_ray.commands.plan import Overrides
from boom_ray.config import BoomError

_HERE = "http://127.0.0.1:8265"


def submit(
    recipe: Annotated[Path, typer.Argument(help="Recipe on this machine; it is uploaded, with --set applied.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(help="After --: another command than run, with its options: update, mine, merge, search ..."),
    ] = None,
    address: Annotated[
        str, typer.Option(help="The dashboard of the cluster's head.", envvar="RAY_API_SERVER_ADDRESS")
    ] = _HERE,
    overrides: Overrides = None,
    run_dir: Annotated[
        str | None,
        typer.Option(
            "--run-dir",
            help="Run directory: absolute, on storage that all nodes share, or s3://BUCKET/PATH. Default: "
            "$BOOM_RAY_HOME/NAME of the cluster's nodes, else ~/boom_ray/runs/NAME there.",
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit, say the job's name, and return.")] = False,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds until a cluster that does not answer is given up (exit code 3).")
    ] = 300.0,
) -> None:
    """Run a recipe as a job of a Ray cluster: upload, show its log, end with its exit code.

    Only the package and the recipe are uploaded (a megabyte or two); data and run directory lie on storage that the
    nodes share. A connection that breaks is taken up again, no line is lost or shown twice. Ctrl-C detaches: the job
    goes on. The same command again attaches to a job that runs, and resumes a run that has ended early.

    A cluster with tokens: RAY_AUTH_TOKEN_PATH names a file with its token. The head's dashboard listens on 127.0.0.1:
    forward its port (cluster/README.md).

    Exit codes: 0 done, 1 the run failed, 2 a mistake in recipe, data or arguments, 3 the cluster was lost or does not
    answer (submit again), 4 another driver holds the run directory, 130 detached, 143 stopped.

    Examples:

      boom-ray submit jobs/recipes/quickstart.yaml --address http://127.0.0.1:8265

      boom-ray submit recipe.yaml --set train.epochs=2 --run-dir s3://my-bucket/runs/mine --no-wait

      boom-ray submit recipe.yaml --run-dir /mnt/runs/mine -- search weights --trials 100
    """
    from boom_ray.cluster.follow import Pace
    from boom_ray.submit import Client, Order
    from boom_ray.submit import submit as send

    order = Order(recipe, tuple(command or ("run",)), tuple(overrides or ()), run_dir)
    code = send(order, Client(address_of(address), _say, _show, Pace(patience=patience)), wait=not no_wait)
    raise typer.Exit(code)


def address_of(text: str) -> str:
    """``http://HOST:PORT``.

    Raises:
        BoomError: an address of something else.
    """
    address = text if "://" in text else f"http://{text}"
    if not address.startswith(("http://", "https://")):
        raise BoomError(f"--address {text}: give the dashboard's address, as in {_HERE}.")
    return address.rstrip("/")


def _say(line: str) -> None:
    """About the job, on stderr: stdout is its log."""
    print(f"boom-ray: {line}", file=sys.stderr, flush=True)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
