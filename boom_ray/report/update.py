"""An update for people: plain text for the terminal, a section of lines, one self-contained page; and the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from boom_ray.report.drift import drift_table
from boom_ray.report.html import table
from boom_ray.report.layout import duration
from boom_ray.report.style import STYLE
from boom_ray.report.text import grid

Summary = Mapping[str, Any]
_DROPPED = ("rejected", "duplicates", "near_duplicates", "decontaminated", "capped")
_NOTE = "Points; [low, high]: 95 % interval of the difference to the current model, over other queries and texts."


def data_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a new dataset each, what was read, dropped and kept."""
    head = ["new data", "rows read", *(name.replace("_", " ") for name in _DROPPED), "new rows", "in the bag"]
    bag = summary["bag"]["datasets"]
    rows = [
        [name, f"{c['rows_in']:,}", *(f"{c.get(why, 0):,}" for why in _DROPPED), f"{c['rows']:,}"]
        + [f"{bag.get(name, 0):,}"]
        for name, c in summary["data"].items()
    ]
    return head, rows


def score_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a model each; means and sets of the new domain, each with the difference to the current model."""
    shown = summary["table"]
    labels = [f"{row['label']} ({row['sets']} sets)" if row["sets"] > 1 else row["label"] for row in shown]
    models = list(shown[0]["models"]) if shown else list(summary["scores"])
    rows = [[name, *(_cell(row["models"][name]) for row in shown), _dev(summary, name)] for name in models]
    return ["model", *labels, "dev B loss / base"], rows


def _cell(cell: Mapping[str, Any]) -> str:
    text, found = f"{100 * cell['score']:.2f}", cell["to_current"]
    return text if found is None else text + " {:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in found))


def _dev(summary: Summary, name: str) -> str:
    found = summary["dev"].get(name, {}).get("b")
    return "-" if found is None else f"{found:.4f}"


def cost_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the update, a full retrain, a batch-level run."""
    cost = summary["cost"]
    members = f"full retrain, {cost['retrain']['members']} members"
    named = {"update": "update", "retrain": members, "batch_level": "batch-level run, one member of 100 %"}
    rows = [
        [
            label,
            cost[name].get("how", "measured"),
            f"{cost[name]['seconds']:,.1f}",
            f"{cost[name]['tokens']:,}",
            f"{cost[name]['bytes'] / 1e6:,.1f}",
            "-" if cost[name].get("share") is None else f"{100 * cost[name]['share']:.0f} %",
        ]
        for name, label in named.items()
    ]
    return ["on old and new rows", "", "device-seconds", "tokens", "MB", "update costs"], rows


def format_update(summary: Summary) -> str:
    """Everything about an update as plain text."""
    parent = Path(summary["parent"]["published"]).name
    head = f"{summary['version']} from {summary['parent']['version']} ({parent})"
    blocks = [
        f"{head}: share of the new member {summary['share']:.3f}, bag of {summary['bag']['rows']:,} rows",
        _grid(*data_rows(summary)),
        _grid(*score_rows(summary)) + f"\n{_NOTE}",
        _grid(*cost_rows(summary), left=2),
        "\n".join(summary["verdict"]),
    ]
    return "\n\n".join(blocks)


def _grid(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    return grid([head], rows, left=left)


def write_update_page(summary: Summary) -> str:
    """The report of an update as one self-contained HTML page."""
    name = escape(str(summary["name"]))
    lines = "".join(f"<li>{escape(line)}</li>" for line in summary["verdict"])
    head, rows = drift_table(summary["drift"])
    notes = "".join(f"<li>{escape(line)}</li>" for line in summary["drift"]["verdict"]["notes"])
    names = ["run's model", *(f"member of v{number}" for number in range(2, len(summary["parts"]) + 1))]
    parts = [[part, f"{100 * share:.1f} %"] for part, share in zip(names, summary["parts"], strict=True)]
    settings = [[key, str(value)] for key, value in summary["settings"].items() if key != "datasets"]
    sections = [
        f'<header>\n<p class="name">boom_ray · {name} · update</p>\n<h1>{escape(summary["version"])} from '
        f'{escape(summary["parent"]["version"])}</h1>\n<ul class="verdict">{lines}</ul></header>',
        f"<h2>Scores</h2>\n{table(*score_rows(summary))}\n<p class='muted'>{_NOTE}</p>",
        f"<h2>New data</h2>\n{table(*data_rows(summary))}",
        f"<h2>Cost</h2>\n{table(*cost_rows(summary), text=2)}",
        f"<h2>Drift: the index of the version before</h2>\n<ul>{notes}</ul>\n{table(head, rows)}",
        f"<h2>What is in it</h2>\n{table(['part', 'share'], parts)}",
        f"<h2>Settings</h2>\n{table(['setting', 'value'], settings, text=2)}",
    ]
    body = "\n".join(f"<section>\n{section}\n</section>" for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name} · update</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    )


def format_history(versions: Sequence[Mapping[str, Any]]) -> str:
    """The chain as plain text: one line per version, the first version first.

    Args:
        versions: as :func:`history_rows` makes them.
    """
    head = ["version", "made", "new data", "new rows", "bag", "weights", "share", "v1 left", "device time"]
    head += ["old ID", "OOD", "new domain", "index", "published"]
    rows = [
        [
            v["version"],
            datetime.fromtimestamp(v["finished"], UTC).strftime("%Y-%m-%d %H:%M"),
            v["data"],
            f"{v['rows']:,}",
            "-" if v["bag"] is None else f"{v['bag']:,}",
            v["weights"],
            "-" if v["share"] is None else f"{v['share']:.3f}",
            "-" if v["left"] is None else f"{100 * v['left']:.0f} %",
            "-" if v["seconds"] is None else duration(v["seconds"]),
            *("-" if v["scores"][name] is None else f"{100 * v['scores'][name]:.2f}" for name in v["scores"]),
            v["index"],
            v["published"],
        ]
        for v in versions
    ]
    return grid([head], rows, left=3)
