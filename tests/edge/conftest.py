"""Fixtures of the edge's tests."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Runs async tests on the loop that the edge runs on."""
    return ("asyncio", {"use_uvloop": True})
