"""The report of a study: the answer first, every condition and interval in it, the same on the page and in markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from made_study import GRID, Made, made_study, made_tasks
from matplotlib.text import Text
from test_page import parse

from boom_ray.evaluate.compare import Task
from boom_ray.evaluate.significance import Interval
from boom_ray.report.drawing import to_svg
from boom_ray.report.study import study_markdown, study_page, tables_of, write_study
from boom_ray.report.study_figures import against_peers, cosine, gain_cost, id_ood, searched, task_gaps
from boom_ray.report.study_tables import answer_table, format_gap, goal_table
from boom_ray.report.study_text import headline, notes, verdict
from boom_ray.study.answer import Answer, answer
from boom_ray.study.goals import Gap
from boom_ray.study.results import StudyResult

SINGLE = Made("bls-1.0", "reference", 1.0, (0.0, 0.0), title="BLS 1.0")
LONG = Made("bls-3.0", "reference", 3.0, (0.002, 0.001), title="BLS 3.0")


def clear(inside: float, outside: float) -> StudyResult:
    """A study with one merge whose gaps to equal compute hardly scatter."""
    merge = Made("bags", "merge", 3.0, (inside, outside), (0.5, 1.0), title="{50, 100}")
    return made_study((SINGLE, LONG, merge), noise=0.02)


@pytest.fixture(scope="module")
def result() -> StudyResult:
    return made_study()


@pytest.fixture(scope="module")
def page(result: StudyResult, found: Answer) -> str:
    return study_page(found, result)


@pytest.fixture(scope="module")
def text(result: StudyResult, found: Answer) -> str:
    return study_markdown(found, result)


@pytest.fixture(scope="module")
def found(result: StudyResult) -> Answer:
    return answer(result)


def test_the_page_is_one_file_that_asks_nobody(page: str) -> None:
    tree = parse(page)
    assert len(tree.ids) == len(set(tree.ids))
    assert all(link.startswith(("#", "data:")) for link in tree.links)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(tree.ids)
    assert "<script" not in page
    assert len(page.encode()) < 1_000_000
    assert page.count("<svg") == 6


def test_the_answer_comes_first_and_every_condition_stands_in_it(page: str, text: str) -> None:
    assert page.index("<h1>") < page.index("Goal 1") < page.index("<table") < page.index("<svg")
    first = text.split("## By task type")[0]
    for made in GRID:
        assert f"| {made.title} | {made.role}{', exploratory' if made.exploratory else ''} |" in first
    assert first.count("±") >= 2 * 2 * 13 - 3 * 2, "to equal compute and to the single run, both domains"
    assert text.rstrip().endswith("```bash\nboom-ray study jobs/recipes/study.yaml --seeds 3\n```")


def test_markdown_and_page_tell_the_same(result: StudyResult, found: Answer, page: str, text: str) -> None:
    for table in tables_of(found, result):
        assert f"## {table.title}" in text
        assert f"<h2>{table.title}</h2>" in page
        assert {len(row) for row in table.rows} == {len(table.head)}
        assert not table.groups or sum(count for _, count in table.groups) == len(table.head)
        for cell in (cell for row in table.rows for cell in row if isinstance(cell, Gap)):
            assert table.shown(cell) in text
            assert table.shown(cell) in page
    for line in [headline(found), *verdict(found, result), *notes(found, result)]:
        assert line in text
    for above, below in pairwise(text.splitlines()):
        assert not (above[:1] == below[:1] == "|") or above.count("|") == below.count("|")


def test_gaps_are_written_with_half_their_interval() -> None:
    assert format_gap(Gap(0.0042, Interval(0.0042, 0.0011, 0.0073))) == "+0.42 ±0.31"
    assert format_gap(Gap(-0.01, None)) == "-1.00 ±?"
    assert format_gap(None) == "-"


def test_goals_are_told_plainly_and_by_how_much() -> None:
    told = {}
    for name, gains in {"yes": (0.012, 0.016), "no": (0.002, 0.001)}.items():
        result = clear(*gains)
        told[name] = (headline(answer(result)), verdict(answer(result), result)[0])
    gain = "A merge beats batch-level shuffling at equal compute. {50, 100} (against BLS 3.0): out-of-domain +1."
    assert told["yes"][0].startswith(gain)
    assert "intervals above zero: reached. Reached by {50, 100}." in told["yes"][1]
    assert re.search(r"out-of-domain \+1\.\d\d ±0\.\d\d \(0\.\d\d above \+1\.0\)", told["yes"][1])
    assert told["no"][0].startswith("No merge beats batch-level shuffling at equal compute by the margin asked for.")
    assert "The closest, {50, 100} (against BLS 3.0): out-of-domain" in told["no"][0]
    assert "intervals above zero: not reached." in told["no"][1]
    assert re.search(r"\(\d\.\d\d short of \+1\.0\)", told["no"][1])
    assert "the whole interval is below the target" in told["no"][1]
    assert "No merge of the core grid that could decide it is finished." in verdict(answer(result), result)[1]


def test_the_goal_table_shows_the_way_to_the_target(found: Answer) -> None:
    table = goal_table(found)
    assert table is not None
    assert [row[0] for row in table.rows] == [a.line.title for a in found.goals[0].attempts]
    gap, left = table.rows[0][3], table.rows[0][4]
    assert isinstance(gap, Gap)
    assert float(str(left)) == pytest.approx(100 * gap.value - 1.0, abs=0.006)
    assert "{50} + rest" not in [row[0] for row in table.rows]


def test_the_number_of_comparisons_and_the_cap_are_said(result: StudyResult, found: Answer) -> None:
    said = " ".join(notes(found, result))
    assert f"There are {found.intervals:,} intervals here." in said
    assert f"about {round(found.intervals / 20)} of them would leave out zero by chance" in said
    assert "texts at most: default 250, the same texts for all models" in said
    assert "19 in-domain and 11 out-of-domain sets" in said
    assert "Exploratory conditions show where to look next" in said


def test_an_unfinished_study_shows_what_there_is() -> None:
    result = made_study([replace(GRID[0], seeds=2), replace(GRID[3], seeds=1)], tasks=LITTLE)
    found = answer(result)
    rows = {row[0]: row for row in answer_table(found).rows}
    assert rows["BLS 1.0"][2] == "2 of 3"
    assert rows["{20..100}"][7] == "BLS 1.0†", "no reference took as much compute"
    assert "Not finished: bls-1.0 (seed 2); bags-20-100 (seed 1); bags-20-100 (seed 2)." in verdict(found, result)
    assert any(line.startswith("† No reference took as much compute") for line in notes(found, result))
    parse(study_page(found, result))


FEW, LITTLE = (GRID[0], GRID[3], GRID[6], GRID[8], GRID[12]), made_tasks(3, 2)


@pytest.mark.parametrize(
    ("grid", "tasks"),
    [
        ((), LITTLE),
        (GRID[3:4], LITTLE),
        (FEW, made_tasks(3, 0)),
        (FEW, made_tasks(0, 3)),
        (FEW, made_tasks(1, 0)),
        ([replace(made, units=False) for made in FEW], LITTLE),
    ],
    ids=["nothing", "one", "no_ood", "no_id", "one_set", "no_units"],
)
def test_poor_studies_have_a_report(grid: Sequence[Made], tasks: Sequence[Task], tmp_path: Path) -> None:
    made = made_study(grid, seeds=1, tasks=tasks)
    page = write_study(made, tmp_path / "study")
    parse(page.read_text(encoding="utf-8"))
    assert page.name == "index.html"
    text = (page.parent / "study.md").read_text(encoding="utf-8")
    assert text.rstrip().endswith(f"{made.command}\n```")
    assert ("Nothing is finished yet." in text) == (not grid)


def test_everything_is_escaped_and_no_secret_is_told() -> None:
    evil = "<script>alert(1)</script>&\"'|$x$"
    result = made_study([replace(GRID[0], title=evil), replace(GRID[3], title=evil)], tasks=made_tasks(3, 3))
    result = replace(
        result, name=evil, base_model=evil, command=f"boom-ray study {evil} --set storage=s3://u:hunter2@b"
    )
    html, text = study_page(answer(result), result), study_markdown(answer(result), result)
    parse(html)
    assert "<script" not in html
    assert "hunter2" not in html + text
    assert "alert(1)</script>&\"'\\|$x$" in text, "a bar is no column"


def test_points_stand_at_their_gaps(found: Answer) -> None:
    figure = id_ood(found)
    assert figure is not None
    drawn = [c.get_offsets() for c in figure.axes[0].collections if hasattr(c, "get_offsets")]
    spots = [tuple(offsets[0]) for offsets in drawn if len(offsets) == 1]
    for line in found.lines:
        x, y = (100 * line.to_single[d].value if line.to_single else 0.0 for d in ("in_domain", "out_of_domain"))
        assert any(spot == pytest.approx((x, y)) for spot in spots)
    base = next(text.get_text() for text in figure.axes[0].texts if text.get_text().startswith("base"))
    assert re.fullmatch(r"base, out of sight at \(-5\.\d, -1\.\d\)", base)


def test_names_do_not_overlap(found: Answer) -> None:
    many = [replace(made, name=f"{made.name}-{n}", exploratory=n > 0) for n in range(2) for made in GRID]
    for figure in (id_ood(answer(made_study(many, seeds=1, tasks=LITTLE))), gain_cost(found)):
        assert figure is not None
        figure.draw_without_rendering()
        for axes in figure.axes:
            names = [text for text in axes.texts if text.get_text()]
            boxes = sorted((Text.get_window_extent(text) for text in names), key=lambda box: box.y0)
            assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


def test_roles_differ_by_shape_and_exploratory_ones_are_hollow(found: Answer) -> None:
    figure = against_peers(found)
    assert figure is not None
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["merge", "control", "hollow: exploratory"]
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert ticks[0] == "{20..100}  against BLS 3.0"
    assert len(ticks) == len([line for line in found.lines if line.peer])


def test_the_heat_map_has_a_cell_for_every_set_and_condition(found: Answer) -> None:
    figure = task_gaps(found)
    assert figure is not None
    cells = figure.axes[0].texts
    assert len(cells) == len(found.tasks) * (len(found.lines) - 1)
    sure = sum(gap.certain for line in found.lines for gap in line.task_gaps.values())
    assert sum(text.get_fontweight() == "bold" for text in cells) == sure > 0


def test_the_members_and_the_search_are_drawn(result: StudyResult) -> None:
    agree, weights = cosine(result), searched(result)
    assert agree is not None
    assert weights is not None
    assert len(agree.axes[0].get_yticklabels()) == sum(len(made.ratios) > 1 for made in GRID)
    legend = [text.get_text() for text in weights.axes[0].get_legend().get_texts()]
    assert legend[0] == "by ratio"
    assert [text.partition(",")[0] for text in legend[1:]] == ["seed 0", "seed 1", "seed 2"]
    nothing = made_study(GRID[:2])
    assert cosine(nothing) is None
    assert searched(nothing) is None


def test_the_same_result_gives_the_same_files() -> None:
    result = made_study(FEW, seeds=2, tasks=LITTLE)
    found = answer(result)
    assert study_markdown(found, result) == study_markdown(answer(result), result)
    for draw in (id_ood, task_gaps):
        one, two = draw(found), draw(found)
        assert one is not None
        assert two is not None
        assert to_svg(one) == to_svg(two)
