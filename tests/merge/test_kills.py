"""A merge that ends at any change of the file system, as by a kill: the same command then gives the same bytes, and
leaves nothing beside them."""

from __future__ import annotations

import os

import pytest
from test_stream import digest, recipe

from boom_ray.config import BoomError
from boom_ray.merge.stream import MergeOptions, merge

CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "ftruncate", "fsync")


class Killed(BaseException):
    pass


class Fuse:
    """Counts changes of the file system; from the ``last``-th on, none takes place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: int | None) -> None:
        self.count = 0
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name), last))

    def _wrapped(self, change, last):
        def counted(*args, **kwargs):
            self.count += 1
            if last is not None and self.count > last:
                raise Killed
            return change(*args, **kwargs)

        return counted


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_every_change_costs_no_byte_and_leaves_none(family, tmp_path, monkeypatch, overwrite):
    config = recipe(*family)
    options = MergeOptions(workers=1, memory="40MB", overwrite=overwrite)
    home = tmp_path / "outputs"
    home.mkdir()
    expected = digest(merge(config, home / "out", options))
    with monkeypatch.context() as patched:
        whole = Fuse(patched, None)
        merge(config, home / ("out" if overwrite else "other"), options)
    assert whole.count > 15
    for last in range(whole.count):
        out = home / f"out-{last}"
        if overwrite:
            merge({**config, "merge_method": "linear", "base_model": None}, out, options)
        old = digest(out) if overwrite else None
        with monkeypatch.context() as patched:
            Fuse(patched, last)
            with pytest.raises(Killed):
                merge(config, out, options)
        appeared = out.exists()
        if appeared:
            assert digest(out) in (expected, old), f"half a model after change {last}"
        if appeared and not overwrite:
            with pytest.raises(BoomError, match="exists"):
                merge(config, out, options)
        else:
            merge(config, out, options)
        assert digest(out) == expected, f"change {last}"
    assert [p.name for p in home.iterdir() if p.name.startswith(".")] == []
