"""Sets whose test texts occur in the training data: a mark at their names, footnotes, and a section of the page.

Reads ``summary["contamination"]``, ``{set: mark}`` with the plain values of a
:class:`boom_ray.evaluate.marks.Mark`; a set without an entry was not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from boom_ray.evaluate.marks import mark_of
from boom_ray.report.html import table

SIGN = "†"
Summary = Mapping[str, Any]


def touched(summary: Summary) -> dict[str, str]:
    """``{set: footnote}`` of the sets that have test texts among the training texts."""
    marks = {name: mark_of(told) for name, told in (summary.get("contamination") or {}).items()}
    return {name: mark.footnote for name, mark in marks.items() if mark.footnote}


def marked(summary: Summary, name: str) -> str:
    """A set's name, with the sign where its test texts occur in the training data."""
    return f"{name} {SIGN}" if name in touched(summary) else name


def footnotes(summary: Summary) -> list[str]:
    """What every sign stands for, one sentence a set; the score without what is touched, where it is known."""
    lines = []
    for name, note in touched(summary).items():
        clean = _clean(summary, name, summary.get("chosen") or "")
        lines.append(f"{SIGN} {name}: {note}" + (f" {clean}" if clean else ""))
    return lines


def contamination_section(summary: Summary) -> str:
    """HTML: what of every set occurs in the training data, and what was taken out of these for its sake."""
    marks = summary.get("contamination") or {}
    if not marks:
        return ""
    dropped = sum(d.get("decontaminated") or 0 for d in summary.get("corpus") or ())
    negatives = sum(d.get("negatives_decontaminated") or 0 for d in summary.get("corpus") or ())
    taken = f"{dropped:,} rows and {negatives:,} negatives were taken out of the corpus before, for evaluation texts. "
    note = (
        f"{taken}Whole texts are compared after folding case, width and white space; near ones share a run of words. "
        "What the base was trained on before this run is not known here."
    )
    head = ["Set", "training datasets", "texts", "occur", "near", "queries or rows", "touched", "score without them"]
    rows = [
        [marked(summary, name), ", ".join(m["datasets"]) or "-", m["texts"], m["exact"], m["near"], m["units"]]
        + [m["touched"], _points(m, summary.get("chosen") or "")]
        for name, m in marks.items()
    ]
    return f'<p class="muted">{escape(note)}</p>\n{table(head, rows, text=2)}'


def _points(mark: Mapping[str, Any], model: str) -> str:
    score = mark["clean"].get(model)
    return "-" if score is None or not mark["touched"] else f"{100 * score:.2f}"


def _clean(summary: Summary, name: str, model: str) -> str:
    score = next((m["scores"].get(name) for m in summary.get("models") or () if m["name"] == model), None)
    clean = _points(summary["contamination"][name], model)
    return "" if score is None or clean == "-" else f"{model} has {100 * score:.2f}, and {clean} without them."
