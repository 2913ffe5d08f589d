"""What a killed actor had reserved is free again, and nothing else."""

from __future__ import annotations

import time

import pytest

from boom_ray.cluster.orphans import release_orphans
from boom_ray.cluster.session import ray_session

pytestmark = pytest.mark.slow


def test_what_a_killed_maker_held_is_given_back(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # never somebody else's cluster
    with ray_session():
        import ray
        from ray.util import placement_group

        class Maker:
            def hold(self, cpus: float) -> bool:
                self._group = placement_group([{"CPU": cpus}])
                return self._group.wait(30)

        makers = [ray.remote(num_cpus=0)(Maker).remote() for _ in range(2)]
        mine = placement_group([{"CPU": 0.5}])
        assert mine.wait(30)
        assert ray.get([maker.hold.remote(0.5) for maker in makers]) == [True, True]
        held = ray.available_resources().get("CPU", 0)
        assert release_orphans() == 0
        ray.kill(makers[0])
        deadline = time.monotonic() + 30
        while not (found := release_orphans()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert found == 1
        while ray.available_resources()["CPU"] != held + 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert release_orphans() == 0
