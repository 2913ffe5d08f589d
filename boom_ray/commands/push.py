"""``boom-ray push``: a published model to a model hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from boom_ray.push import Offer, Target


def push(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A published model: RUN/published/NAME.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub; made if it is not there.")],
    private: Annotated[
        bool,
        typer.Option("--private/--public", help="Who may see a repository that is made; public only when asked."),
    ] = True,
    revision: Annotated[str | None, typer.Option(help="Branch, made if it is not there. Default: main.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the model, list files with sizes, print the card; contact nobody.")
    ] = False,
) -> None:
    """Push a published model to the Hugging Face hub, in one commit. Nothing else ever does this by itself.

    Every file is compared with the model's manifest first: what is unfinished, damaged, or a part of a run that was
    not published is refused. Files that are no part of the model stay here. Weights of an earlier model that the
    repository has are removed in the same commit.

    The token comes from `hf auth login` or HF_TOKEN; HF_ENDPOINT names another hub.

    Examples:

      boom-ray push runs/quickstart/published/NAME me/my-model --dry-run

      boom-ray push runs/quickstart/published/NAME me/my-model --public --revision v2
    """
    from boom_ray.push import Target, inspect
    from boom_ray.push import push as send

    target, offer = Target(repository, private, revision), inspect(directory)
    if dry_run:
        _show(offer, target)
        return
    done = send(offer, target, typer.echo)
    for name in done.removed:
        typer.echo(f"removed there: {name}")
    typer.echo(f"pushed: {done.url} (commit {done.commit})")


def _show(offer: Offer, target: Target) -> None:
    seen = "private" if target.private else "public"
    where = f"{target.repository} ({seen}), branch {target.revision or 'main'}"
    typer.echo(f"would push {len(offer.files)} files, {offer.bytes:,} bytes, of {offer.name} to {where}:")
    for name, size in offer.files.items():
        typer.echo(f"  {size:>14,}  {name}")
    for name in offer.left_out:
        typer.echo(f"  {'stays here':>14}  {name}")
    typer.echo(f"\nthe card, README.md:\n\n{offer.card}")
