"""Drift and trained-on test texts in the report: marks, footnotes, sections, and nothing where nothing is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report_example import example

from boom_ray.report.card import write_card
from boom_ray.report.contamination import SIGN, contamination_section, footnotes, marked
from boom_ray.report.drawing import to_svg
from boom_ray.report.drift import DRIFT_FILE, drift_figure, drift_lines, drift_section, format_drift, run_drift
from boom_ray.report.page import write_page
from boom_ray.report.text import format_tables

TOUCHED = "python_functions_ood"


def mark(**changes: Any) -> dict[str, Any]:
    clean = {"merge-searched": 0.3333}
    told = {"revision": "r", "texts": 90, "exact": 3, "near": 2, "units": 30, "touched": 4, "datasets": ["crawl"]}
    return {**told, "clean": clean, **changes}


def interval(value: float, width: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def told(**changes: Any) -> dict[str, Any]:
    cosine = {"mean": interval(0.9), "quantiles": {"0.01": 0.5, "0.05": 0.7, "0.25": 0.8, "0.5": 0.9, "0.75": 0.95}}
    searched = {
        "cosine": {**cosine, "texts": 120},
        "overlap": {pair: interval(0.8) for pair in ("mixed/new", "mixed/old", "new/old")},
        "ndcg": {"old": 0.5, "new": 0.55, "mixed": 0.41},
        "gain": interval(0.05),
        "loss": {"to_new_index": interval(0.14), "to_today": interval(0.09)},
    }
    plain = {key: searched[key] for key in ("cosine", "overlap")}
    sets = [
        {"name": name, "documents": 100, "queries": 20, "dimensions": [4, 4], **numbers}
        for name, numbers in (("search <i>", searched), ("texts", plain))
    ]
    verdict = {
        "reembed": True, "shown": True, "text": "Re-embed: it loses 14.00 points.", "notes": ["Note one."],
        "limits": {"ndcg_loss": 0.005, "overlap": 0.95},
    }  # fmt: skip
    return {
        "old": "/some/where/old-1",
        "new": "/else/where/new-2",
        "verdict": verdict,
        "mean": searched,
        "sets": sets,
        **changes,
    }


def test_marks_footnotes_and_drift_everywhere() -> None:
    marks = {TOUCHED: mark(), "python_functions": mark(exact=0, near=0, touched=0)}
    summary = {**example(), "contamination": marks, "drift": told()}
    assert marked(summary, TOUCHED) == f"{TOUCHED} {SIGN}"
    assert marked(summary, "python_functions") == "python_functions"
    (note,) = footnotes(summary)
    assert note.startswith(f"{SIGN} {TOUCHED}: 3 of 90 texts occur in the training data of crawl, 2 more share a run")
    assert note.endswith("and 33.33 without them.")
    page, card, tables = write_page(summary), write_card(summary, published_name="m"), format_tables(summary)
    for text in (page, card, tables):
        assert f"{TOUCHED} {SIGN}" in text
        assert f"python_functions {SIGN}" not in text
    assert note in tables
    assert note in card
    assert "Test texts among the training texts" in page
    assert "were taken out of the corpus before" in page
    for shown in (page, card, format_drift(told())):
        assert "Re-embed: it loses 14.00 points." in shown
        assert "Note one." in shown
    assert "search &lt;i&gt;" in page
    assert "/some/where" not in page + card
    assert "14.00 [13.00, 15.00]" in page
    assert "80.0 [79.0, 81.0]" in format_drift(told())


def test_a_clean_run_has_the_section_and_no_sign() -> None:
    summary = {**example(), "contamination": {"python_functions": mark(exact=0, near=0, touched=0, datasets=[])}}
    assert "<td>30</td>" in contamination_section(summary)
    assert SIGN not in contamination_section(summary) + write_card(summary, published_name="m")
    assert SIGN not in format_tables(summary)


def test_nothing_known_nothing_said() -> None:
    plain = {k: v for k, v in example().items() if k not in ("drift", "contamination")}
    assert drift_section(plain) == contamination_section(plain) == drift_lines(plain) == ""
    assert footnotes(plain) == []
    assert "## Drift" not in write_card(plain, published_name="m")


def test_the_figure_shows_what_there_is() -> None:
    figure = drift_figure(told())
    assert figure is not None
    assert len(figure.axes) == 3
    assert b"without re-embedding" in to_svg(figure)
    other_dimension = told(mean={"cosine": None, "overlap": {"new/old": interval(0.3)}})
    other_dimension["sets"] = [{**s, "cosine": None, "overlap": {}, "loss": None} for s in other_dimension["sets"]]
    assert drift_figure(other_dimension) is None
    assert "Re-embed" in format_drift({**other_dimension, "sets": []})


def test_a_run_shows_the_drift_of_what_it_has_published(tmp_path: Path) -> None:
    assert run_drift(tmp_path, "new-2") is None
    (tmp_path / DRIFT_FILE).parent.mkdir()
    (tmp_path / DRIFT_FILE).write_text(json.dumps(told()))
    assert run_drift(tmp_path, "new-2") == told()
    assert run_drift(tmp_path, "newer-3") is None
    (tmp_path / DRIFT_FILE).write_text("{")
    assert run_drift(tmp_path, "new-2") is None
