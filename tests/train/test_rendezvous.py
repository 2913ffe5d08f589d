"""The store of a member's workers: reached at its address, and at no other."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psutil

from boom_ray.train.rendezvous import store_at


def test_the_store_listens_on_its_own_address_alone():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor() as both:  # each waits for the other
        serves, joins = both.map(lambda rank: store_at("127.0.0.1", port, rank, 2, timedelta(seconds=20)), range(2))
    joins.set("word", "from rank 1")
    assert serves.get("word") == b"from rank 1"
    mine = psutil.Process().net_connections(kind="tcp")
    assert {c.laddr.ip for c in mine if c.laddr.port == port and c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_a_process_group_is_founded_on_that_store():
    """In a process of its own: torch is told so for good."""
    script = """
import psutil, socket, torch.distributed as dist
from boom_ray.train.rendezvous import bind_to_its_address
bind_to_its_address()
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
mine = psutil.Process().net_connections(kind="tcp")
print({c.laddr.ip for c in mine if c.laddr.port == port and c.status == psutil.CONN_LISTEN})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "{'127.0.0.1'}\n", done.stderr
