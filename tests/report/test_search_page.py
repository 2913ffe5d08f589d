"""The page of searches: self-contained, escaped, with every figure that there is something to show for."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_searches import ratio_search, weight_search

from boom_ray.report.search_figures import OF_ONE, shown
from boom_ray.report.search_page import PAGE, format_analysis, write_analysis, write_search_page
from boom_ray.search.analysis import read_searches

BASELINES = [
    {"name": "ratio", "a": 0.9, "b": 0.92, "b_score": 0.5, "b_interval": None},
    {"name": "searched", "a": 0.8, "b": 0.91, "b_score": 0.52, "b_interval": [0.02, 0.01, 0.03]},
    {"name": "<greedy>", "a": 0.8, "b": 0.93, "b_score": 0.49, "b_interval": [-0.01, -0.02, 0.01]},
]


class _Tags(HTMLParser):
    """Open tags, in order, and those that are closed wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link", "br", "path", "use", "rect", "image", "stop"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "use", "rect", "image", "stop"):
            return
        if not self.stack or self.stack.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = tmp_path / "my run & <script>"
    weight_search(root / "search" / "x-1", baselines=BASELINES)
    (root / "run.json").write_text("{}")
    means = {
        "member-0": {"in_domain": [0.01, 0.0, 0.02], "out_of_domain": [-0.01, -0.03, 0.01]},
        "merge-ratio": {"in_domain": [0.02, 0.01, 0.03], "out_of_domain": [0.01, -0.01, 0.03]},
    }
    models = [{"name": "member-0", "kind": "member"}, {"name": "merge-ratio", "kind": "merge"}]
    (root / "report").mkdir()
    (root / "report" / "summary.json").write_text(
        json.dumps({"models": models, "intervals": {"means": {"base": means}}})
    )
    return root


def test_page_figures_and_tables_of_one_search(run: Path, tmp_path: Path) -> None:
    files = write_analysis(read_searches(run), tmp_path / "out")
    names = {file.name for file in files}
    assert names == {"trials.csv", "convergence.png", "id_ood.png", *(f"{name}.png" for name in OF_ONE), PAGE}
    assert all(file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for file in files if file.suffix == ".png")
    page = (tmp_path / "out" / PAGE).read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page), "nothing is loaded from anywhere"
    assert "<script" not in page
    assert page.count("<svg") == len(OF_ONE) + 2
    tags = _Tags()
    tags.feed(page)
    assert not tags.wrong
    assert not tags.stack
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "figures on one page do not share ids"
    assert "&lt;greedy&gt;" in page
    assert "+2.00 [+1.00, +3.00]" in page
    assert "last one" not in page, "trials were judged once"


def test_several_searches_are_compared(run: Path, tmp_path: Path) -> None:
    other = weight_search(tmp_path / "random", seed=8, rungs=True, searcher="random")
    searches = read_searches(run) + read_searches(other) + read_searches(ratio_search(tmp_path / "asha"))
    files = write_analysis(searches, tmp_path / "out", "parquet")
    names = [file.name for file in files]
    assert len(names) == len(set(names))
    assert names[:2] == ["trials.parquet", "judgements.parquet"]
    page = (tmp_path / "out" / PAGE).read_text()
    text = format_analysis(searches)
    for found in searches:
        assert found.name in text
    assert "last one" in page
    assert "fANOVA" in text
    assert page == write_search_page(searches), "the same searches give the same page"


def test_a_search_in_which_all_failed_still_has_a_page(tmp_path: Path) -> None:
    from boom_ray.search.trial_log import Trial, TrialLog

    for number in range(3):
        TrialLog(tmp_path / "trials.jsonl").append(Trial(number, "tpe", None, {}, None, error="NaN"))
    page = write_search_page(read_searches(tmp_path))
    assert "every trial failed" in page
    assert "<svg" not in page


def test_names_of_columns() -> None:
    assert shown("weight:early:member-0") == "early: member-0"
    assert (shown("has:20 %"), shown("scale"), shown("config:a/b")) == ("20 %", "scale", "a/b")
    assert shown("seconds:total") == "seconds: total"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "does not exist"),
        ([".", "--table", "xls"], "csv or parquet"),
        ([".", "--take", "first"], "last or best"),
        ([".", "--mode", "most"], "min or max"),
    ],
)
def test_bad_input_is_one_message(arguments, told, monkeypatch, capsys, tmp_path) -> None:
    from boom_ray.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["boom-ray", "search", "analyze", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert (out, err.count("boom-ray: ")) == ("", 1)
    assert told in err


def test_the_command_writes_what_it_says(run, monkeypatch, capsys, tmp_path) -> None:
    from boom_ray.cli import main

    monkeypatch.setattr(
        sys, "argv", ["boom-ray", "search", "analyze", str(run), str(run), "--out", str(tmp_path / "o")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out, err = capsys.readouterr()
    assert "reading 80 trials of" in err
    assert f"page: {tmp_path / 'o' / PAGE}" in out
    assert (tmp_path / "o" / PAGE).is_file()
