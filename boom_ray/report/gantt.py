"""The plan of an ensemble as text: who trains when on how many workers, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from boom_ray.report.layout import duration, percent, share
from boom_ray.resources import Placement
from boom_ray.train.placing import EnsemblePlan
from boom_ray.train.traffic import Traffic

_CHART = 60  # characters of the whole time
_WELL_USED = 0.9  # share of the workers that are busy


def gantt_lines(plan: EnsemblePlan, bags: Mapping[str, str], price: float | None) -> list[str]:
    """The chart, then makespan, lower bound, device-hours and cost.

    Args:
        bags: what people call the bag of each member.
        price: of one device-hour.
    """
    name = max(len("member"), *(len(p.name) for p in plan.placements))
    bag = max(len("bag"), *(len(bags[p.name]) for p in plan.placements))
    head = f"{'member':{name}}  {'bag':{bag}}  {'workers':>7}  {'start':>8}  {'end':>8}"
    lines = [f"{head}  |{'time'.center(_CHART, '-')}|"]
    for p in plan.placements:
        times = f"{_clock(p.start, plan):>8}  {_clock(p.end, plan):>8}"
        lines.append(f"{p.name:{name}}  {bags[p.name]:{bag}}  {p.width:>7}  {times}  |{_bar(p, plan.makespan)}|")
    return [*lines, *_totals(plan, price)]


def network_lines(traffic: Traffic) -> list[str]:
    """What workers exchange and what storage gives and takes."""
    most = "at most " if traffic.at_most else ""
    workers, each = bytes_text(traffic.workers), bytes_text(traffic.peak)
    return [
        f"network, on paper: {most}{workers} between workers, {each}/s to each worker of the busiest member; weights: "
        f"{bytes_text(traffic.read)} read from storage, {bytes_text(traffic.written)} written"
    ]


def bytes_text(count: float) -> str:
    """With three digits: ``1.2 GB``."""
    steps = min(5, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{count / 1000**steps:,.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[steps]}"


def _bar(placement: Placement, makespan: float) -> str:
    first, last = (round(_CHART * at / makespan) for at in (placement.start, placement.end))
    last = max(last, first + 1)
    return f"{'#' * (last - first):>{last}}".ljust(_CHART)


def _clock(at: float, plan: EnsemblePlan) -> str:
    """A time, or its share of the makespan where no speed is known."""
    return duration(at) if plan.timed else percent(round(at / plan.makespan, 3))


def _totals(plan: EnsemblePlan, price: float | None) -> list[str]:
    slots, busy = plan.limits.slots, plan.busy_share
    over = f"this plan is {100 * plan.over_bound:.1f} % above it"
    if plan.busy_hours is None or plan.held_hours is None:
        lines = [
            f"no plan can end in less than {percent(round(plan.bound / plan.makespan, 3))} of this time ({over})",
            f"{share(busy)} of {slots} workers are busy on average; hours need a speed: give --rows-per-second (and "
            f"--rows, while there is no corpus), or train one member here",
        ]
    else:
        lines = [
            f"makespan {duration(plan.makespan)}; no plan can beat {duration(plan.bound)} ({over})",
            f"device-hours: {plan.busy_hours:,.2f} at work, {plan.held_hours:,.2f} for all {slots} workers to the end "
            f"({share(busy)} busy)",
        ]
        if price is not None:
            low, high = price * plan.busy_hours, price * plan.held_hours
            lines.append(f"cost at {price:g} a device-hour: {low:,.2f} at work, {high:,.2f} for all to the end")
    most = max(p.width for p in plan.placements)
    if most == plan.limits.max_width and most < slots and busy < _WELL_USED:
        lines.append(f"the widest member has resources.max_width ({most}) workers: a higher one may end sooner")
    return lines
