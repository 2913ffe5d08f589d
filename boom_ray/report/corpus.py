"""The report's part on the corpus: what became of every row, in tables and two figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from boom_ray.report.drawing import GRID, PAPER, WIDTH, Summary, new_axes, styled
from boom_ray.report.html import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 7  # datasets with a colour of their own; the smaller ones share one
_OTHERS = "others"
_COLUMNS = {
    "rows_in": "rows read", "rejected": "rejected", "duplicates": "duplicates", "near_duplicates": "near-duplicates",
    "decontaminated": "in evaluation", "capped": "over the cap", "rows": "kept", "dev_a": "dev A", "dev_b": "dev B",
    "tokens": "tokens", "longest": "longest row",
}  # fmt: skip
_OPTIONAL = ("near_duplicates", "tokens", "longest")
_PLACES = {"used": "used", "out_of_bag": "out-of-bag", "dev": "dev", "tail": "tail", "cut": "cut short"}
_CLEANED = ("rejected", "decontaminated", "duplicates", "near_duplicates", "capped")


def corpus_section(summary: Summary) -> str:
    """HTML: a row per dataset; below it, for every member, where all rows that were read went."""
    data = summary["corpus"]
    if not data:
        return ""
    columns = {k: v for k, v in _COLUMNS.items() if k not in _OPTIONAL or any(d.get(k) for d in data)}
    rows = [[d["name"], d["task_type"]] + [d.get(key) for key in columns] for d in data]
    add = {key: max if key == "longest" else sum for key in columns}
    total = ["all", ""] + [add[key](d.get(key) or 0 for d in data) for key in columns]
    note = '<p class="muted">Dev rows are kept rows that no bag holds: A to search on, B to report.</p>'
    whole = note + table(["Dataset", "task", *columns.values()], rows, total if len(data) > 1 else None, text=2)
    return whole + _accounts(summary["members"])


def _accounts(members: Sequence[Mapping[str, Any]]) -> str:
    counted = [m for m in members if m.get("accounts")]
    if not counted:
        return ""
    head = ["Member", "dataset", "rows read", *_PLACES.values(), "removed before"]
    note = (
        '<p class="muted">Where every row went: in a batch at least once; out-of-bag; dev; in the bag, but in an '
        "incomplete batch that was left out, or after the last step; removed before bags were drawn.</p>"
    )
    whole = [_line(m["name"], "all", list(m["accounts"].values())) for m in counted]
    each = [_line(m["name"], name, [account]) for m in counted for name, account in m["accounts"].items()]
    details = f"<details><summary>by dataset</summary>{table(head, each, text=2)}</details>"
    return f"\n<br>\n{note}{table(head, whole, text=2)}\n{details}"


def _line(member: str, dataset: str, accounts: Sequence[Mapping[str, int]]) -> list[Any]:
    places = [sum(account[place] for account in accounts) for place in ("rows_in", *_PLACES)]
    return [member, dataset, *places, sum(account[place] for account in accounts for place in _CLEANED)]


@styled
def bags(summary: Summary) -> Figure | None:
    """Distinct rows of every member's bag, by dataset."""
    members = summary["members"]
    counts = [m.get("per_dataset") or {} for m in members]
    if not any(map(any, (c.values() for c in counts))):
        return None
    groups = _grouped(counts)
    figure, axes = new_axes(WIDTH, 0.9 + 0.34 * len(members))
    left = [0] * len(members)
    for (name, values), colour in zip(groups.items(), _colours(len(groups)), strict=True):
        axes.barh(
            range(len(members)), values, 0.72, left=left, label=name, color=colour, edgecolor=PAPER, linewidth=0.6
        )
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_yticks(range(len(members)), [f"{m['name']}\n{m['bag']}" if m.get("bag") else m["name"] for m in members])
    axes.set_ylim(len(members) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("rows in the bag")
    axes.grid(axis="x")
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.0, columnspacing=1.2)
    return figure


@styled
def lengths(summary: Summary) -> Figure | None:
    """Rows of every dataset by their number of tokens, as shares."""
    data = [d for d in summary.get("corpus") or () if d.get("histogram")]
    if not data:
        return None
    groups = _grouped(
        [{d["name"]: count for d in data for b, count in d["histogram"] if b == bound} for bound in _bounds(data)]
    )
    figure, axes = new_axes(WIDTH, 2.8)
    bounds = _bounds(data)
    for index, ((name, values), colour) in enumerate(zip(groups.items(), _colours(len(groups)), strict=True)):
        shares = [100 * value / max(1, sum(values)) for value in values]
        axes.plot(bounds, shares, marker="os^DvPX*"[index % 8], markersize=4.5, linewidth=1.6, color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(bounds, [f"{bound:,}" for bound in bounds])
    axes.set_xlabel("tokens of a row, up to")
    axes.set_ylabel("share of the rows, %")
    axes.grid(axis="y", color=GRID)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.2)
    return figure


def _bounds(data: Sequence[Mapping[str, Any]]) -> list[int]:
    found = [bound for d in data for bound, _ in d["histogram"]]
    return [2**power for power in range(min(found).bit_length() - 1, max(found).bit_length())]


def _grouped(counts: Sequence[Mapping[str, int]]) -> dict[str, list[int]]:
    """Values by dataset, one per entry of ``counts``; the smallest datasets are taken together."""
    sizes: dict[str, int] = {}
    for count in counts:
        for name, value in count.items():
            sizes[name] = sizes.get(name, 0) + value
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    own = order if len(order) <= _MOST + 1 else order[:_MOST]
    found = {name: [count.get(name, 0) for count in counts] for name in own}
    if len(own) < len(order):
        found[_OTHERS] = [sum(count.get(name, 0) for name in order[_MOST:]) for count in counts]
    return found


def _colours(count: int) -> list[Any]:
    import matplotlib

    ramp = matplotlib.colormaps["viridis"]
    return [ramp(0.05 + 0.85 * i / max(1, count - 1)) for i in range(count)]
