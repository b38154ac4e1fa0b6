"""The gateway of the conformance cases."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from tests.conformance.rig import HEARTBEAT_SECONDS, PRICES, UPSTREAM_MODEL, Gateway
from tests.support.mesh import Mesh


@pytest.fixture(scope="session")
def conformance_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """`lurus up` whose heartbeats come soon, with a price for what the scripted providers serve."""
    with Mesh(tmp_path_factory.mktemp("conformance"), heartbeat_seconds=str(HEARTBEAT_SECONDS)) as mesh:
        price = {"price_id": "price_conformance", "model": UPSTREAM_MODEL}
        mesh.rest("POST", "prices", json={**price, **{name: str(value) for name, value in PRICES.items()}})
        yield mesh


@pytest.fixture
async def gateway(conformance_mesh: Mesh) -> AsyncIterator[Gateway]:
    """The gateway, with providers that are the test's own."""
    async with Gateway(conformance_mesh) as found:
        yield found


@pytest.fixture
async def client(conformance_mesh: Mesh) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client with the first key."""
    async with httpx.AsyncClient(
        base_url=conformance_mesh.base_url, headers=conformance_mesh.headers(), timeout=30
    ) as found:
        yield found
