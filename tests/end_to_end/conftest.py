"""A whole mesh, started as a user starts it."""

from collections.abc import Iterator

import pytest
from tests.support.mesh import Mesh


@pytest.fixture(scope="session")
def running_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """`lurus up` on free ports. Shared by the tests that leave it as it was."""
    with Mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running


@pytest.fixture(scope="session")
def mesh(running_mesh: Mesh) -> Mesh:
    """The mesh as it is."""
    return running_mesh


@pytest.fixture
def own_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh for one test that kills parts of it."""
    with Mesh(tmp_path_factory.mktemp("own-mesh")) as running:
        yield running
