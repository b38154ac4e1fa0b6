"""Secrets of providers: sealed at rest, never shown, opened only by who holds the key."""

import asyncio
import base64
import logging

import asyncpg
import pytest
from redis.asyncio import Redis
from tests.provider.rig import CREDENTIAL_KEY, SECRET, a_provider, create, refused

from lurus.provider.v1 import provider_pb2 as pb
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus_common.secrets import SealBroken, unseal
from lurus_common.settings import Settings
from lurus_common.telemetry import exposition

pytestmark = pytest.mark.anyio
KEY = base64.b64decode(CREDENTIAL_KEY)


async def everything_stored(database_url: str) -> bytes:
    """Returns every row of every table, in text and with the bytes of bytea columns as they are."""
    connection = await asyncpg.connect(database_url)
    try:
        tables = await connection.fetch(
            "SELECT format('%I.%I', table_schema, table_name) AS name FROM information_schema.tables "
            "WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
        )
        found = []
        for table in tables:
            for row in await connection.fetch(f"SELECT * FROM {table['name']}"):
                found += [
                    value if isinstance(value, bytes) else str(value).encode() for value in row.values()
                ]
        return b"\n".join(found)
    finally:
        await connection.close()


async def test_a_secret_is_nowhere_in_plaintext(
    stub: ProviderServiceStub, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    created = await create(stub, credentials=[pb.Credential(secret=SECRET)])
    answers = [
        await stub.GetProvider(pb.GetProviderRequest(provider_id=created.provider_id)),
        await stub.ListProviders(pb.ListProvidersRequest()),
        await stub.MatchModel(pb.MatchModelRequest(model="anything")),
        await stub.CheckHealth(pb.CheckHealthRequest(provider_id=created.provider_id)),
        await stub.UpdateProvider(
            pb.UpdateProviderRequest(provider=pb.Provider(provider_id=created.provider_id, level=2))
        ),
    ]
    other = a_provider(provider_id=created.provider_id, credentials=[pb.Credential(secret=SECRET + "x")])
    error = await refused(stub.CreateProvider(pb.CreateProviderRequest(provider=other)))
    redis = Redis.from_url(settings.redis_url)
    cached = [await redis.hgetall(name) async for name in redis.scan_iter("lurus:provider:*")]
    await redis.aclose()
    assert cached
    shown = b"".join(answer.SerializeToString() for answer in answers) + repr(cached).encode()
    stored = await everything_stored(settings.database_url)
    assert created.provider_id.encode() in stored
    assert created.provider_id.encode() in shown
    said = caplog.text.encode() + exposition() + error.message.encode() + repr(error.metadata).encode()
    for text in (
        SECRET,
        SECRET[4:30],
        base64.b64encode(SECRET.encode()).decode()[:40],
        SECRET.encode().hex(),
    ):
        assert text.encode() not in stored + shown + said
    assert all(not provider.credentials[0].sealed_secret for provider in answers[1].providers)


async def test_only_a_watcher_gets_secrets_and_only_sealed(stub: ProviderServiceStub) -> None:
    created = await create(stub)
    watch = stub.WatchProviders(pb.WatchProvidersRequest())
    async with asyncio.timeout(5):
        message = await watch.read()
    watch.cancel()
    provider = next(one for one in message.providers if one.provider_id == created.provider_id)
    credential = provider.credentials[0]
    assert SECRET.encode() not in message.SerializeToString()
    assert unseal(KEY, credential.sealed_secret, f"{created.provider_id}|default") == SECRET
    with pytest.raises(SealBroken):
        unseal(KEY, credential.sealed_secret, "another|default")
