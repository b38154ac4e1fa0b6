"""Ports for servers that tests start.

Two processes of tests that look for free ports at the same moment could find
the same ones: each of them has a part of its own.
"""

import os
from typing import Final

from lurus_switch.embedded import data_dir

# Of meshes; below what `lurus up` chooses for its stores, and below outgoing connections.
_LOWEST, _HIGHEST = 10_000, 20_000
# From a service's port to that for its operator.
OPS_DISTANCE = 1_000
_STORES: Final = (data_dir.LOWEST_PORT, data_dir.HIGHEST_PORT)


def of_meshes() -> range:
    """The ports of this process for the services of meshes; those 1000 above are its own too."""
    part = _part(_LOWEST, _HIGHEST)
    return part[:-OPS_DISTANCE] if len(part) > 2 * OPS_DISTANCE else part


def of_stores() -> range:
    """The ports of this process for embedded stores."""
    return _part(*_STORES)


def _part(lowest: int, highest: int) -> range:
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (highest - lowest) // count
    return range(lowest + index * size, lowest + (index + 1) * size)
