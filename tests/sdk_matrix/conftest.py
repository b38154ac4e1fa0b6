"""The gateway of the matrix, and its table at the end of the run."""

from collections.abc import Iterator

import pytest
from tests.sdk_matrix.clients import CLIENTS
from tests.sdk_matrix.gateway import Matrix, register
from tests.sdk_matrix.provider import ScriptedProvider
from tests.support.mesh import Mesh


@pytest.fixture(scope="session")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """`lurus up` with the scripted provider behind it."""
    with Mesh(tmp_path_factory.mktemp("matrix")) as mesh, ScriptedProvider() as provider:
        register(mesh, provider.url, list(CLIENTS))
        yield Matrix(mesh, provider)
