"""The chain of versions: parents, which version an update goes onto, what is left of each model, changed files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.chain import Version, check_unchanged, lineage, mass_share, mixed, newest, parent_for, read_versions
from boom_ray.config import BoomError
from boom_ray.ledger import Key, Ledger


def version(name: str, number: int, parent: str | None = None, data: str = "", finished: float = 0.0) -> Version:
    update = {"version": number, "parent": {"identity": parent}, "data": {"digest": data}} if parent else None
    return Version(Key("published", "m", name), finished or float(number), {"update": update})


CHAIN = [version("a", 1), version("b", 2, "a", "x"), version("c", 3, "b", "y"), version("d", 2, "a", "x", 9.0)]


def test_a_line_runs_from_the_first_version_to_the_last():
    assert [v.key.identity for v in lineage(CHAIN, "c")] == ["a", "b", "c"]
    assert [v.number for v in lineage(CHAIN, "c")] == [1, 2, 3]
    assert [v.name for v in lineage(CHAIN, "d")] == ["v1", "v2"]


def test_the_newest_has_the_highest_number_and_of_siblings_was_published_last():
    assert newest(CHAIN, "a").key.identity == "c"
    assert newest([v for v in CHAIN if v.number < 3], "a").key.identity == "d"
    assert newest([*CHAIN, version("other", 4, "elsewhere", finished=99.0)], "a").key.identity == "c"
    assert newest(CHAIN, "unknown") is None


def test_a_line_with_a_gap_or_a_circle_is_refused():
    with pytest.raises(BoomError, match="gone"):
        lineage([version("b", 2, "gone")], "b")
    with pytest.raises(BoomError, match="cannot be followed"):
        lineage([version("a", 2, "b"), version("b", 3, "a")], "a")


def test_known_data_go_onto_the_parent_of_the_version_that_has_them():
    line = lineage(CHAIN, "c")
    assert parent_for(line, "new").key.identity == "c"
    assert parent_for(line, "y").key.identity == "b"  # the same update again
    assert parent_for(line, "x").key.identity == "a"


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12))
def test_by_mass_every_model_keeps_its_rows_over_all_rows(rows):
    """The first is not washed out, whatever the number of updates; halves leave 1 / 2**n of it."""
    behind, left, halves = rows[0], [1.0], [1.0]
    for added in rows[1:]:
        new = [0.0] * len(left) + [1.0]
        left, halves = mixed(left, mass_share(behind, added), new), mixed(halves, 0.5, new)
        behind += added
    assert left == pytest.approx([n / sum(rows) for n in rows])
    assert halves[0] == pytest.approx(0.5 ** (len(rows) - 1))
    assert math.isclose(sum(halves), 1.0)


def test_an_ensemble_of_all_members_is_mixed_by_its_rows():
    assert mixed([0.6, 0.4], 1.0, [300, 100, 100]) == pytest.approx([0.6, 0.2, 0.2])
    assert mixed([1.0], 0.5, [1, 1]) == pytest.approx([0.75, 0.25])
    assert mass_share(100, 0) == 0.0


@pytest.fixture
def published(tmp_path: Path) -> tuple[Ledger, Version]:
    ledger, key = Ledger(tmp_path), Key("published", "m", "0" * 16)
    with ledger.stage(key) as stage:
        (stage.path / "model.safetensors").write_bytes(b"weights")
        (stage.path / "config.json").write_text("{}")
        stage.meta.update(corpus=[])
    return ledger, read_versions(ledger)[0]


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def _rewrite(file: Path) -> None:
    manifest: dict[str, Any] = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "meta": {"corpus": ["something else"]}}))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", _flip),
        ("config.json", _flip),
        ("model.safetensors", Path.unlink),
        ("boom_manifest.json", _rewrite),
        ("adapter.safetensors", Path.touch),
    ],
)
def test_a_version_that_has_changed_is_refused(published, name, change):
    ledger, found = published
    check_unchanged(ledger, found)
    assert (found.number, found.parent, found.name) == (1, None, "v1")
    change(ledger.path(found.key) / name)
    with pytest.raises(BoomError, match="no longer the model that was published"):
        check_unchanged(ledger, found)


def test_a_directory_without_its_marker_is_no_version(published):
    ledger, found = published
    (ledger.path(found.key) / "_SUCCESS").unlink()
    assert read_versions(ledger) == []
