"""Fixtures that every package's tests share: the real stores, started once for the whole run."""

from collections.abc import Iterator

import pytest

from lurus_switch.embedded import EmbeddedBackends


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackends]:
    """PostgreSQL, NATS, Valkey and ClickHouse, with `.urls`. Shared: a test makes its own database."""
    with EmbeddedBackends.running(tmp_path_factory.mktemp("backends")) as running:
        yield running
