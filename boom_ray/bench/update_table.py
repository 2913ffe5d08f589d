"""The results of ``boom-ray bench update`` as text: every seed, the goals, the grid, the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from boom_ray.report.text import grid


def table(result: Mapping[str, Any]) -> str:
    """All parts that have results, as plain text."""
    parts = result["parts"]
    blocks = [_main_text(parts[name]) for name in parts if name.startswith("main-")]
    mains = [parts[name] for name in parts if name.startswith("main-")]
    blocks += [_goals(mains)] if mains else []
    if "grid" in parts:
        blocks += [_rows_text(parts["grid"], ("init", "core", "weights"), "table")]
    if "chain" in parts:
        blocks += [_rows_text(parts["chain"], ("weights", "piece"), "since_first")]
    return "\n\n".join(blocks)


def _main_text(found: Mapping[str, Any]) -> str:
    shown = found["table"]
    head = [f"seed {found['seed']}", *(row["label"] for row in shown)]
    models = shown[0]["models"]
    body = [[name, *(_cell(row["models"][name]) for row in shown)] for name in models]
    return grid([head], body) + "\n" + "\n".join(found["verdict"])


def _cell(cell: Mapping[str, Any]) -> str:
    text, gap = f"{100 * cell['score']:.2f}", cell["to_current"]
    return text if gap is None else text + " {:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in gap))


def goals(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Share of the retrain's gain on the new domain; changes of old in-domain and out-of-domain means in points; share
    of the retrain's device time, and of its tokens: where two members share a core's threads and the update has one for
    itself, device time flatters the update."""
    rows = {row["label"]: row["models"] for row in found["table"]}

    def change(label: str, model: str) -> float:
        return float(rows[label][model]["score"] - rows[label]["current model"]["score"])

    whole = change("new domain", "full retrain") if "full retrain" in rows["new domain"] else 0.0
    return {
        "gain": change("new domain", "update") / whole if whole > 0 else None,
        "old_id": 100 * change("old in-domain", "update"),
        "ood": 100 * change("out-of-domain", "update"),
        "cost": found["cost"]["retrain"]["share"],
        "tokens": found["cost"]["update"]["tokens"] / found["cost"]["retrain"]["tokens"],
    }


def _goals(mains: Sequence[Mapping[str, Any]]) -> str:
    found = [goals(main) for main in mains]
    gains = [goal["gain"] for goal in found if goal["gain"] is not None]
    means = {name: mean(goal[name] or 0.0 for goal in found) for name in ("old_id", "ood", "cost", "tokens")}
    gain = f"{100 * mean(gains):.0f} %" if gains else "unknown"
    return (
        f"mean over {len(found)} seeds: {gain} of the full retrain's gain on the new domain (asked: 90 %), old "
        f"in-domain {means['old_id']:+.2f} and out-of-domain {means['ood']:+.2f} points (asked: -0.5 or better), at "
        f"{100 * means['cost']:.1f} % of its device time and {100 * means['tokens']:.1f} % of its tokens (asked: 20 %)"
    )


def _rows_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], against: str) -> str:
    """Grid or chain: a row per update, means of the updated model with the change to the run's own model."""
    labels = [row["label"] for row in rows[0][against] if row["sets"] > 1]
    head = [*columns, "share", *labels, "device-seconds", "re-embed"]
    body = []
    for row in rows:
        cells = {shown["label"]: shown["models"]["update"] for shown in row[against]}
        first = [f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in columns]
        last = [f"{row['cost']['update']['seconds']:,.0f}", "yes" if row["drift"]["verdict"]["reembed"] else "no"]
        body.append([*first, f"{row['share']:.3f}", *(_cell(cells[label]) for label in labels), *last])
    return grid([head], body, left=len(columns))
