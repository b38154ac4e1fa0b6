"""An edge of its own process with short timers, in front of a running mesh: gRPC between it and routing."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.support.mesh import (
    OPS_DISTANCE,
    START_SECONDS,
    STOP_SECONDS,
    Mesh,
    eventually,
    free_ports,
    is_free,
)

# Enough for an honest client on a busy machine.
HEAD_SECONDS = 2.0
BODY_SECONDS = 2.0
OUTPUT = "impatient-edge.out"


@contextmanager
def impatient_edge(mesh: Mesh) -> Iterator[int]:
    """Starts it, yields its port, and stops it. Its log is the file `OUTPUT` in the mesh's data."""
    (port,) = free_ports(1)
    areas = ("ROUTING", "PROVIDER", "LOG", "BILLING")
    settings = {f"LURUS_{area}_ADDRESS": f"127.0.0.1:{mesh.ports[area]}" for area in areas}
    settings |= {
        "LURUS_EDGE_PORT": str(port),
        "LURUS_OPS_PORT": str(port + OPS_DISTANCE),
        "LURUS_ADMIN_TOKEN": mesh.admin_token,
        "LURUS_CLIENT_HEAD_SECONDS": str(HEAD_SECONDS),
        "LURUS_CLIENT_BODY_SECONDS": str(BODY_SECONDS),
        "LURUS_DRAIN_SECONDS": "2",
    }
    others = {name: value for name, value in mesh.environment.items() if not name.startswith("LURUS_")}
    with (mesh.data_dir / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lurus_switch.targets", "edge"],
            env={**others, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        eventually(lambda: _is_ready(process, port), START_SECONDS)
        yield port
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _is_ready(process: "subprocess.Popen[bytes]", port: int) -> bool:
    assert process.poll() is None, f"the edge has ended with {process.returncode}"
    if is_free(port + OPS_DISTANCE):
        return False  # The last thing that it starts.
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    except httpx.TransportError:
        return False
