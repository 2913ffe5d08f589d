"""The report of a study: one self-contained HTML page, the answer first, and the same tables as markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from boom_ray.ledger import write_durably
from boom_ray.redact import redact
from boom_ray.report.card_scores import markdown_table
from boom_ray.report.drawing import to_svg
from boom_ray.report.page import inline_svg
from boom_ray.report.study_figures import against_peers, cosine, gain_cost, id_ood, searched, task_gaps
from boom_ray.report.study_tables import (
    Cell,
    Table,
    answer_table,
    control_table,
    cosine_table,
    found_table,
    goal_table,
    seed_table,
    task_table,
    type_table,
)
from boom_ray.report.study_text import headline, notes, verdict
from boom_ray.report.style import STYLE
from boom_ray.study.answer import Answer, answer
from boom_ray.study.goals import Gap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from boom_ray.study.results import StudyResult

PAGE, MARKDOWN = "index.html", "study.md"
_OWN_STYLE = """
figure.wide { margin: 2.2rem 0; }
figure.wide svg { max-width: 68rem; }
td.long { white-space: normal; min-width: 14rem; }
.figures { align-items: start; }
ul.verdict li:last-child { color: inherit; }
"""
_WORDS = re.compile("[A-Za-z]{3}")
_FOLDED = ("Set by set", "Seed by seed")  # long tables, behind a click on the page


def write_study(result: StudyResult, folder: Path) -> Path:
    """Write the page and ``study.md`` into a folder; returns the page. An unfinished study shows what there is.

    Raises:
        BoomError: two models were scored on different texts of a set.
    """
    found = answer(result)
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / MARKDOWN, study_markdown(found, result))
    write_durably(folder / PAGE, study_page(found, result))
    return folder / PAGE


def tables_of(found: Answer, result: StudyResult) -> list[Table]:
    """The tables in the order of the report; what there is nothing of is left out."""
    tables = [
        answer_table(found),
        type_table(found),
        goal_table(found),
        control_table(found),
        cosine_table(result),
        found_table(result),
        task_table(found),
        seed_table(result, found),
    ]
    return [table for table in tables if table is not None]


def study_markdown(found: Answer, result: StudyResult) -> str:
    """Headline, verdict, tables and notes in GitHub's markdown; the command last."""
    blocks = [f"# {result.name}: the study", f"**{headline(found)}**", _bullets(verdict(found, result))]
    for table in tables_of(found, result):
        blocks += [f"## {table.title}", table.note, _markdown(table)]
    blocks += ["## What the numbers are", _bullets(notes(found, result)), f"```bash\n{result.command}\n```"]
    return redact("\n\n".join(blocks)) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _markdown(table: Table) -> str:
    """Without rows of groups, which markdown does not know: their words go into the heads."""
    above = [words for words, count in table.groups for _ in range(count)] or [""] * len(table.head)
    head = [f"{words}: {name}" if words else name for words, name in zip(above, table.head, strict=True)]
    return markdown_table(head, [[_marked(table, cell) for cell in row] for row in table.rows], text=table.text)


def _marked(table: Table, cell: Cell) -> str:
    sure = isinstance(cell, Gap) and cell.certain
    return f"**{table.shown(cell)}**" if sure else table.shown(cell)


def study_page(found: Answer, result: StudyResult) -> str:
    """The page as HTML text; every word is escaped, and what looks like a credential is left out."""
    name, (first, *rest) = _safe(result.name), tables_of(found, result)
    lines = "".join(f"<li>{_safe(line)}</li>" for line in verdict(found, result))
    told = "".join(f'<p class="muted">{_safe(line)}</p>' for line in notes(found, result))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name} · study</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{STYLE}{_OWN_STYLE}</style>\n</head>\n<body>\n'
        f'<header>\n<p class="name">boom_ray · {name} · study</p>\n<h1>{_safe(headline(found))}</h1>\n'
        f'<ul class="verdict">{lines}</ul>\n</header>\n{_section(first)}\n<section>{told}</section>\n'
        + _pictures(found, result)
        + "\n".join(_section(table) for table in rest)
        + f"\n<section>\n<h2>Made with</h2>\n<pre>{_safe(result.command)}</pre>\n</section>\n</body>\n</html>\n"
    )


def _pictures(found: Answer, result: StudyResult) -> str:
    """All figures; narrow ones that follow one another share a line where there is room."""
    blocks = []
    for wide, group in groupby(figures(found, result), key=lambda drawn: drawn[3]):
        shown = "\n".join(
            f"<figure{' class=wide' if wide else ''}><figcaption><b>{_safe(title)}</b><span>{_safe(caption)}</span>"
            f"</figcaption>{inline_svg(to_svg(figure), stem, title)}</figure>"
            for stem, title, caption, _, figure in group
        )
        blocks.append(shown if wide else f'<div class="figures">\n{shown}\n</div>')
    return "<h2>In pictures</h2>\n" + "\n".join(blocks) + "\n" if blocks else ""


def figures(found: Answer, result: StudyResult) -> Iterator[tuple[str, str, str, bool, Figure]]:
    """(name, title, caption, wide, figure) of all that there is to show."""
    bars = "Bars: 95 % intervals of the gap to the single run"
    drawn = (
        ("peers", "Against batch-level shuffling at equal compute", "Right of the line is better; grey bars hold zero; "
         "the dashed line is the goal.", True, against_peers(found)),
        ("id_ood", "In-domain against out-of-domain", f"Right and up is better. {bars}.", False, id_ood(found)),
        ("gain_cost", "Gain against cost", f"The dashed line joins the references; what costs the same "
         f"stands side by side. {bars}.", False, gain_cost(found)),
        ("task_gaps", "Set by set", "Points above the single run, in-domain above the line; bold: the interval leaves "
         "out zero.", True, task_gaps(found)),
        ("cosine", "Do the members agree?", "Cosine of every two members' task vectors; the bar is the mean.", False,
         cosine(result)),
        ("searched", "What the search found", "The share of each member, by seed; the line is its share by ratio.",
         False, searched(result)),
    )  # fmt: skip
    for name, title, caption, wide, figure in drawn:
        if figure is not None:
            yield name, title, caption, wide, figure


def _section(table: Table) -> str:
    body = f'<p class="muted">{_safe(table.note)}</p>\n{_html(table)}'
    if table.title in _FOLDED:
        body = f"<details><summary>the table</summary>{body}</details>"
    return f"<section>\n<h2>{_safe(table.title)}</h2>\n{body}\n</section>"


def _html(table: Table) -> str:
    starts = {sum(count for _, count in table.groups[:index]) for index in range(1, len(table.groups))}
    above = "".join(
        f'<th{" class=group" if index else ""} colspan="{count}">{_safe(words)}</th>'
        for index, (words, count) in enumerate(table.groups)
    )
    told = {i for row in table.rows for i, cell in enumerate(row) if isinstance(cell, str) and _WORDS.search(cell)}
    told |= set(range(table.text))
    classes = [["text"] * (i in told) + ["group"] * (i in starts) for i in range(len(table.head))]
    head = "".join(_cell("th", name, None, those) for name, those in zip(table.head, classes, strict=True))
    body = "\n".join(
        "<tr>" + "".join(_cell("td", table.shown(c), c, those) for c, those in zip(row, classes, strict=True)) + "</tr>"
        for row in table.rows
    )
    first = f"<tr>{above}</tr>\n" if above else ""
    return (
        f'<div class="scroll"><table class="tight"><thead>{first}<tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>'
        "</table></div>"
    )


def _cell(tag: str, text: str, cell: Cell, classes: Sequence[str]) -> str:
    """A gap is quiet where it may be none, bold where it is certain, and marked where it is a certain loss."""
    shown, names = _safe(text), list(classes)
    if isinstance(cell, Gap):
        names += ["quiet"] if not cell.certain else ["down"] if cell.value < 0 else []
        shown = f"<b>{shown}</b>" if cell.certain else shown
    elif isinstance(cell, str):
        names += ["long"] if len(cell) > 40 else []
    mark = f' class="{" ".join(names)}"' if names else ""
    return f"<{tag}{mark}>{shown}</{tag}>"


def _safe(text: str) -> str:
    return escape(redact(text))
