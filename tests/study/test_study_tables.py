"""docs/study.md and README's table: every row of figures is one of the reports that `boom-ray study` wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPORTS = ("three-layers", "full-base")  # in the order of their tables in docs/study.md
NOTE = re.compile(r" \((?:exploratory, )?(\d)(?: of \d)? seeds?\)")


def table_rows(text: str, header: str) -> list[list[str]]:
    """The cells of the first table below a line that begins with `header`."""
    lines = text[text.index(f"\n{header}") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def answer(report: str) -> dict[str, tuple[str, list[str]]]:
    """(its seeds, its cells as docs/study.md has them) of every row of the report's first table."""
    rows = {}
    for cells in table_rows((ROOT / "docs" / "study" / f"{report}.md").read_text(), "| condition |"):
        name, kind, seeds, passes, _, id_mean, ood_mean, _, *gaps = cells
        shown = [passes if passes == "-" else f"{float(passes):.1f}", id_mean, ood_mean, *gaps]
        rows["base" if kind == "base" else name] = (seeds, ["" if cell == "-" else cell for cell in shown])
    return rows


@pytest.mark.parametrize("number", range(len(REPORTS)))
def test_the_tables_of_the_page_are_the_reports(number: int) -> None:
    report = answer(REPORTS[number])
    text = (ROOT / "docs" / "study.md").read_text()
    tables = text.split("\n| condition | passes |")[1:]
    assert len(tables) == len(REPORTS)
    for name, *cells in table_rows(f"\n| condition | passes |{tables[number]}", "| condition | passes |"):
        seeds, told = report[NOTE.sub("", name)]
        assert cells == told, name
        found = NOTE.search(name)
        assert found is None or seeds.startswith(found[1]), (name, seeds)


def test_the_gaps_in_the_readme_are_the_reports() -> None:
    reports = [answer(name) for name in REPORTS]
    rows = table_rows((ROOT / "README.md").read_text(), "| all-MiniLM-L6-v2, gap to one run of 1 pass |")
    means = [reports[n]["BLS, 1 pass"][1][1:3] for n in range(len(REPORTS))]
    assert [cell.strip("*") for cell in rows[0][2:]] == means[0] + means[1]
    for name, cost, *gaps in rows[1:]:
        gaps = [NOTE.sub("", gap) for gap in gaps]
        told = [
            {(cells[0].removesuffix(".0"), cells[-2], cells[-1]) for _, cells in report.values()} for report in reports
        ]
        assert (cost, *gaps[:2]) in told[0], name
        assert (cost, *gaps[2:]) in told[1], name
