"""docs/faults.md: all forty cases stand in it once, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAST = 36  # cases that are provoked
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def cases() -> dict[int, tuple[str, str]]:
    """(how it was provoked, what happened), by number."""
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs" / "faults.md").read_text(), re.M)
    found = {int(number): (how, what) for number, how, what in rows}
    assert len(found) == len(rows), "a case stands twice"
    return found


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_case_stands_in_the_table_with_what_happened() -> None:
    found = cases()
    assert sorted(found) == list(range(1, 41))
    for number, (how, what) in found.items():
        assert TEST.search(how) or how.startswith("not provoked: "), number
        assert len(what.split()) >= 3, number


def test_every_test_that_is_named_is_there() -> None:
    for number, (how, _) in cases().items():
        for file, name in TEST.findall(how):
            assert (ROOT / file).is_file(), (number, file)
            assert name in names_in(file), (number, name)


def test_enough_cases_are_provoked() -> None:
    provoked = [number for number, (how, _) in cases().items() if TEST.search(how)]
    assert len(provoked) >= LEAST, sorted(set(range(1, 41)) - set(provoked))
