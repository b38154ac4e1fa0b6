"""A provider service of each module's own, on a database of its own, asked through real gRPC."""

from collections.abc import AsyncIterator

import pytest
from tests.provider.rig import ADMIN_TOKEN, CREDENTIAL_KEY, database, served

from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus_common.settings import Settings
from lurus_switch.embedded import EmbeddedBackends


@pytest.fixture(scope="module")
async def database_url(backends: EmbeddedBackends) -> AsyncIterator[str]:
    async with database(backends.urls.database_url) as url:
        yield url


@pytest.fixture(scope="module")
def settings(backends: EmbeddedBackends, database_url: str) -> Settings:
    return Settings(
        database_url=database_url,
        redis_url=backends.urls.redis_url,
        admin_token=ADMIN_TOKEN,
        credential_key=CREDENTIAL_KEY,
        provider_port=0,
        log_level="warning",
    )


@pytest.fixture(scope="module")
async def stub(settings: Settings) -> AsyncIterator[ProviderServiceStub]:
    async with served(settings) as found:
        yield found
