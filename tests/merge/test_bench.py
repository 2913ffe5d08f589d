"""The benchmark runs every variant and reports memory that does not grow with the members."""

from __future__ import annotations

from pathlib import Path

import pytest

from boom_ray.bench.merge import MergeBench, bench_merge, table

pytest.importorskip("boom_ray.merge.kernels")


def test_bench_measures_the_limit_and_every_variant_in_constant_memory(tmp_path: Path) -> None:
    bench = MergeBench(size="80MB", members=3, repeats=1, memory="24MB", embedding=0.8, directory=str(tmp_path))
    result = bench_merge(bench)
    rows = {row["variant"]: row for row in result["rows"]}
    assert rows["limit"]["wall_ratio"] == rows["limit"]["cpu_ratio"] == 1
    assert {name.split(",")[0] for name in rows} == {"limit", "two passes", "cached Gram"}
    assert all(row["wall"] > 0 and row["runs"] == (8 if row is rows["limit"] else 1) for row in rows.values())
    constant = [row["memory"] for name, row in rows.items() if "24MB" in name]
    assert max(constant) < 24e6 + 110e6  # of 240 MB of members; interpreter and libraries are about 76 MB of it
    assert all(name in table(result) for name in rows)
    assert not list(tmp_path.iterdir())
