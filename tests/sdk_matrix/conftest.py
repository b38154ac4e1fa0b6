"""The gateway of the matrix, its clients, and its table at the end of the run."""

from collections.abc import Iterator

import pytest
from tests.sdk_matrix.clients import CLIENTS
from tests.sdk_matrix.drivers import Drivers
from tests.sdk_matrix.gateway import Matrix, register
from tests.sdk_matrix.provider import ScriptedProvider
from tests.support.mesh import Mesh


@pytest.fixture(scope="session")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """`lurus up` with the scripted provider behind it."""
    with Mesh(tmp_path_factory.mktemp("matrix")) as mesh, ScriptedProvider() as provider:
        register(mesh, provider.url, list(CLIENTS))
        yield Matrix(mesh, provider)


@pytest.fixture(scope="session")
def drivers(matrix: Matrix, request: pytest.FixtureRequest) -> Iterator[Drivers]:
    """The clients; those that a test of this run asks for have begun."""
    found = [
        item.callspec.params.get("client") for item in request.session.items if hasattr(item, "callspec")
    ]
    drivers = Drivers(matrix, {client.group for client in found if client in CLIENTS.values()})
    yield drivers
    drivers.stop()
