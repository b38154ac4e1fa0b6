"""The mesh of the fault matrix."""

from collections.abc import Iterator

import pytest
from tests.fault_matrix.rig import FaultRig, running_rig


@pytest.fixture(scope="session")
def fault_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultRig]:
    """A mesh with short timers in front of the fault kit's provider."""
    with running_rig(tmp_path_factory.mktemp("faults")) as found:
        yield found
        assert not found.provider.failures, found.provider.failures
