"""The node provider of cluster/one-machine.yaml: Ray's own, which starts every node as processes of this machine."""

from __future__ import annotations

import functools
import tempfile
from typing import Any
from unittest import mock

import ray._private.parameter
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class OneMachineProvider(FakeMultiNodeProvider):
    """With a session folder for each node, below the head's.

    Ray's nodes would share one. Each that comes up unpacks a job's code there anew, under the feet of those that run,
    and two that come up together take the same socket.
    """

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        with self.lock:
            folder = tempfile.mkdtemp(prefix="n", dir=_head_folder(self._gcs_address))  # short: sockets lie in it
            own = functools.partial(ray._private.parameter.RayParams, temp_dir=folder)
            with mock.patch.object(ray._private.parameter, "RayParams", own):
                super()._create_node_with_resources_and_labels(*arguments)


def _head_folder(gcs: str) -> str:
    nodes = GcsClient(address=gcs).get_all_node_info().values()
    return next(node.temp_dir for node in nodes if node.is_head_node)
