"""docs/operations.md: its exit codes are the code's, and the lines of its sizing table are what the plan says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from boom_ray.config import Recipe
from boom_ray.data.bag_rules import bag_rules
from boom_ray.exit_codes import MEANING
from boom_ray.recipe import load_recipe
from boom_ray.report.gantt import bytes_text
from boom_ray.report.layout import duration
from boom_ray.resources import Job, Speed, described_nodes
from boom_ray.train.placing import ensemble_plan
from boom_ray.train.traffic import Sizes, traffic

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
ROWS = 2_000_000
ASSUMED = {"0.6b": (60.0, 0.6e9, 64), "4b": (10.0, 4.0e9, 32)}  # rows a second, parameters, max_width
CLUSTERS = {8: "1x8xH100", 64: "8x8xH100", 512: "64x8xH100", 1024: "128x8xH100"}
PRICE = 2.5


def test_the_exit_codes_are_those_of_the_code() -> None:
    table = {int(code): means for code, means in re.findall(r"^\| (\d+) \| ([^|]+?) \|", PAGE, re.M)}
    assert set(table) == set(MEANING)
    for code, means in table.items():
        assert means.split(";")[0].split(" in the ")[0] in MEANING[code], (code, means)


def _recipe(name: str, width: int) -> Recipe:
    changes = (f"resources.max_width={width}", f"resources.price={PRICE}")
    return load_recipe(ROOT / "jobs" / "recipes" / f"boom_{name}.yaml", changes)


def _line(name: str, gpus: int) -> str:
    rate, parameters, width = ASSUMED[name]
    recipe = _recipe(name, width)
    rows = {f"member-{i}": rule.ratio * ROWS * recipe.train.epochs for i, rule in enumerate(bag_rules(recipe.bags, ()))}
    nodes = [{"CPU": 64.0, "GPU": node["GPU"]} for node in _nodes(CLUSTERS[gpus])]
    plan = ensemble_plan(recipe, [Job(member, count) for member, count in rows.items()], nodes, Speed(rate))
    moved = traffic(recipe, plan.placements, rows, Sizes.assumed(recipe, parameters, None))
    assert plan.busy_hours is not None
    widths = ", ".join(str(p.width) for p in sorted(plan.placements, key=lambda p: p.name))
    most = "<= " if moved.at_most and recipe.train.zero_stage == 3 else ""
    cells = [
        name.upper(), f"{gpus:,}", widths, duration(plan.makespan), f"{plan.busy_hours:,.0f}",
        f"{PRICE * plan.busy_hours:,.0f}", f"{100 * plan.busy_share:.0f} %", f"{most}{bytes_text(moved.workers)}",
        f"{most}{bytes_text(moved.peak)}/s", f"{bytes_text(moved.read)} / {bytes_text(moved.written)}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _nodes(cluster: str) -> list[dict[str, float]]:
    from boom_ray.resources import Bundle

    return described_nodes(cluster, Bundle(1, 1.0))


@pytest.mark.parametrize("gpus", CLUSTERS)
@pytest.mark.parametrize("name", ASSUMED)
def test_a_line_of_the_sizing_table_is_what_the_plan_says(name: str, gpus: int) -> None:
    line = _line(name, gpus)
    assert line in PAGE, f"docs/operations.md should say\n{line}"
