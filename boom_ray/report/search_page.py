"""The page of an analysis of searches: one self-contained HTML file, and the same as tables and PNGs beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_ray.ledger import write_durably
from boom_ray.redact import scrub
from boom_ray.report.drawing import to_png, to_svg
from boom_ray.report.html import table as html_table
from boom_ray.report.page import inline_svg
from boom_ray.report.search_figures import OF_ONE, convergence, id_ood, shown
from boom_ray.report.style import STYLE
from boom_ray.report.text import grid
from boom_ray.search.analysis import (
    LEAST,
    Found,
    Row,
    half_b,
    id_against_ood,
    importance,
    overview,
    table,
    weighable,
    write_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawn = tuple[str, str, str, "Figure"]
PAGE = "index.html"
_MOST_ROWS = 200  # of a table on the page; the file beside it has all
_HIDDEN = ("search", "searcher", "taken", "failed")
_DIGITS = 4


def write_analysis(searches: Sequence[Found], out: Path, ending: str = "csv") -> list[Path]:
    """Write ``trials`` (a row per trial), ``judgements`` (a row per judgement, where trials have several), the figures
    as PNG and the page into a folder; returns the files.

    Args:
        ending: of the tables, csv or parquet.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"trials.{ending}"]
    write_table(table(searches), files[0])
    if any(len(found.lines) > len(found.trials) for found in searches):
        files.append(out / f"judgements.{ending}")
        write_table(table(searches, every=True), files[-1])
    drawn = list(figures(searches))
    page = write_search_page(searches, drawn)  # first: a figure is laid out when it is drawn
    for stem, _, _, figure in drawn:
        files.append(out / f"{stem}.png")
        files[-1].write_bytes(to_png(figure))
    write_durably(out / PAGE, page)
    return [*files, out / PAGE]


def figures(searches: Sequence[Found]) -> Iterator[Drawn]:
    """(file name without ending, title, caption, figure) of all that there is to show."""
    runs = [row for run in dict.fromkeys(found.run for found in searches if found.run) for row in id_against_ood(run)]
    kinds = dict.fromkeys((found.kind, found.objective) for found in searches)  # what has one scale shares a figure
    for number, kind in enumerate(kinds):
        together = [found for found in searches if (found.kind, found.objective) == kind]
        if (figure := convergence(together)) is not None:
            name = "convergence" + (f"-{number + 1}" if len(kinds) > 1 else "")
            yield name, "Convergence", f"The best value so far; dots are trials of one rung. {kind[1]}.", figure
    if (figure := id_ood(runs)) is not None:
        yield "id_ood", "In-domain against out-of-domain", "Models of the run, with 95 % intervals.", figure
    for found, stem in zip(searches, _stems(searches), strict=True):
        for name, (draw, title, caption) in OF_ONE.items():
            figure = draw(found)
            if figure is not None:
                yield f"{stem}{name}", title if len(searches) == 1 else f"{title}: {found.name}", caption, figure


def _stems(searches: Sequence[Found]) -> list[str]:
    """What the files of each search begin with: nothing where there is one."""
    if len(searches) == 1:
        return [""]
    return [re.sub(r"[^A-Za-z0-9]+", "-", found.name).strip("-") + "-" for found in searches]


def write_search_page(searches: Sequence[Found], drawn: Sequence[Drawn] | None = None) -> str:
    """The page as HTML text; every word of a search is escaped, and what looks like a credential is left out.

    Args:
        drawn: the :func:`figures`, where the caller has them already.
    """
    title = " · ".join(found.name for found in searches)
    shown_figures = [
        f"<figure><figcaption><b>{escape(head)}</b><span>{escape(caption)}</span></figcaption>"
        f"{inline_svg(to_svg(figure), stem, head)}</figure>"
        for stem, head, caption, figure in (figures(searches) if drawn is None else drawn)
    ]
    body = "\n".join(_search_section(found) for found in searches)
    head, rows = overview_table(searches)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_safe(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f'<header><p class="name">{_safe(title)}</p>\n<h1>{_safe(headline(searches))}</h1>\n'
        f"{html_table(head, scrub(rows), text=2)}\n{_notes(searches)}</header>\n"
        f'<div class="figures">\n{chr(10).join(shown_figures)}\n</div>\n{body}\n</body>\n</html>\n'
    )


def headline(searches: Sequence[Found]) -> str:
    """The best of each search in one sentence."""
    told = []
    for found in searches:
        best = found.best
        if best is None:
            told.append(f"{found.name}: every trial failed")
            continue
        where = f" with {best['ratios']}" if best.get("ratios") else ""
        told.append(f"{found.name}: {_text(best['value'])} in trial {best['trial']} of {len(found.trials)}{where}")
    return "; ".join(told)


def overview_table(searches: Sequence[Found]) -> tuple[list[str], list[list[Any]]]:
    """Heads and rows: a search each; columns that no search has are left out."""
    rows = overview(searches)
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return names, [[_text(row[name]) for name in names] for row in rows]


def format_analysis(searches: Sequence[Found]) -> str:
    """For the terminal: the searches, what matters in each, and what half B says."""
    head, rows = overview_table(searches)
    blocks = [grid([head], rows, left=2)]
    for found in searches:
        shares = importance(found)
        if shares:
            told = ", ".join(f"{shown(row['parameter'])} {100 * row['importance']:.0f} %" for row in shares[:6])
            blocks.append(f"{found.name}, share of the variance (fANOVA): {told}")
        reported = half_b(found)
        if reported:
            blocks.append(grid([_HALF_B], [_half_b_row(row) for row in reported], left=1))
    return "\n\n".join([*blocks, *_sentences(searches)])


_HALF_B = ["half B", "objective A", "objective B", "metric B", "difference [95 %]", "to"]


def _half_b_row(row: Mapping[str, Any]) -> list[str]:
    span = "-"
    if row["difference"] is not None:
        span = f"{100 * row['difference']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
    score = "-" if row["score"] is None else f"{100 * row['score']:.2f}"
    return [str(row["model"]), _text(row["a"]), _text(row["b"]), score, span, row["against"]]


def _sentences(searches: Sequence[Found]) -> list[str]:
    """What the numbers are, and what they are not."""
    notes = [f"{found.name}: {found.objective}." for found in searches]
    if any(len(found.lines) > len(found.trials) for found in searches):
        kinds = " or ".join(sorted({str(row["taken"]) for found in searches for row in found.trials}))
        notes.append(
            f"A trial with several judgements is shown with its {kinds} one. Values of different rungs were taken on "
            f"other rows or after other training: curves, importance and panels keep to one rung."
        )
    few = [found.name for found in searches if not weighable(found)[0]]
    if few:
        notes.append(f"No importance for {', '.join(few)}: it takes {LEAST} comparable trials that differ.")
    if any(half_b(found) for found in searches):
        notes.append(
            "Half A chose, half B is the report. Dev rows are in-domain: out-of-domain is in the run's report."
        )
    return notes


def _notes(searches: Sequence[Found]) -> str:
    return "\n".join(f'<p class="muted">{_safe(line)}</p>' for line in _sentences(searches))


def _search_section(found: Found) -> str:
    rows = half_b(found)
    reported = html_table(_HALF_B, scrub([_half_b_row(row) for row in rows])) if rows else ""
    return f"<section><h2>{_safe(found.name)}</h2>\n{reported}\n{_trials(found)}</section>"


def _trials(found: Found) -> str:
    """All trials, best first, folded."""
    names = [name for name in found.trials[0] if name not in _HIDDEN and any(r[name] is not None for r in found.trials)]
    sign = 1 if found.lower else -1
    order = sorted(
        found.trials, key=lambda r: (-(r["rung"] or 0), r["value"] is None, sign * (r["value"] or 0), r["trial"])
    )
    cells = [[_text(row[name]) for name in names] for row in order[:_MOST_ROWS]]
    rest = "" if len(order) <= _MOST_ROWS else f"; the first {_MOST_ROWS}, the table beside this page has all"
    heads = [shown(name) for name in names]
    return (
        f"<details><summary>{len(found.trials)} trials, best first{rest}</summary>"
        f"{html_table(heads, scrub(cells), text=0)}</details>"
    )


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def _safe(text: str) -> str:
    return escape(str(scrub(text)))


__all__ = ["PAGE", "Row", "format_analysis", "headline", "write_analysis", "write_search_page"]
