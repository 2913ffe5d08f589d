"""Where the workers of a member find one another: torch's store, on the address of rank 0's node and on no other.

Left alone it listens on all interfaces of the node, and it asks nobody who he is.
"""

from __future__ import annotations

import importlib
import socket
from datetime import timedelta
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch.distributed import TCPStore


class Rendezvous(TorchConfig):
    """Ray's configuration of the process group, with that store."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(bind_to_its_address)
        super().on_start(worker_group, backend_config)


def bind_to_its_address() -> None:
    """From now on a store that this process serves listens on its own address alone."""
    # a function of the same name stands before the module
    importlib.import_module("torch.distributed.rendezvous")._create_c10d_store = store_at  # type: ignore[attr-defined]


def store_at(
    hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True
) -> TCPStore:
    """The store of ``world_size`` workers, which rank 0 serves at ``hostname:port``."""
    place: dict[str, Any] = {"host_name": hostname, "port": port, "world_size": world_size, "timeout": timeout}
    if rank:
        return TCPStore(**place, is_master=False)
    family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
    listening = socket.create_server((hostname, port), family=family)
    return TCPStore(**place, is_master=True, use_libuv=use_libuv, master_listen_fd=listening.detach())
