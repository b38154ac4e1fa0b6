"""Asks a provider for its list of models: whether it answers and accepts a credential, for no tokens."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import ClientResponse, ClientSession, ClientTimeout
from google.protobuf.duration_pb2 import Duration
from prometheus_client import Counter

from lurus.provider.v1.provider_pb2 import Credential, CredentialHealth, Provider
from lurus.usage.v1 import usage_pb2
from lurus_common.addresses import AddressRefused, GuardedConnector
from lurus_common.secrets import SealBroken
from lurus_provider.credentials import open_secret

# All together stay below the deadline of a management call.
CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 8.0
MAX_PROBES_AT_ONCE = 16
MAX_BODY_BYTES = 64 * 1024
MAX_HEADER_BYTES = 16 * 1024
ANTHROPIC_VERSION = "2023-06-01"

PROBES = Counter("lurus_provider_probes", "Credentials probed by CheckHealth.", ["result"])

_DETAILS = {
    401: "the provider refused the credential",
    403: "the provider refused the credential",
    404: "the provider has no list of models, so the credential cannot be checked",
    405: "the provider has no list of models, so the credential cannot be checked",
    429: "the provider throttles this credential",
}


@asynccontextmanager
async def open_session(http_hosts: frozenset[str]) -> AsyncIterator[ClientSession]:
    """Gives the client for all probes of a process; it calls only where the settings allow."""
    async with ClientSession(
        connector=GuardedConnector(http_hosts, limit=MAX_PROBES_AT_ONCE, force_close=True),
        timeout=ClientTimeout(total=TOTAL_SECONDS, connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    ) as session:
        yield session


async def probe_all(session: ClientSession, provider: Provider, key: bytes) -> list[CredentialHealth]:
    """Returns how each enabled credential of a provider is, in their order.

    Args:
        session: from `open_session`.
        provider: with its sealed credentials.
        key: 32 bytes that open them.
    """
    enabled = [credential for credential in provider.credentials if not credential.is_disabled]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_probe(session, provider, credential, key)) for credential in enabled]
    return [task.result() for task in tasks]


async def _probe(
    session: ClientSession, provider: Provider, credential: Credential, key: bytes
) -> CredentialHealth:
    health = CredentialHealth(credential_id=credential.credential_id)
    started = time.monotonic_ns()
    try:
        secret = open_secret(provider.provider_id, credential, key)
        health.http_status, health.detail = await _ask(session, provider, secret)
    except SealBroken:
        health.detail = "the credential was sealed under another LURUS_CREDENTIAL_KEY; enter it again"
    except TimeoutError:
        health.detail = f"no answer within {TOTAL_SECONDS:.0f} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # The text of these may quote what a stranger sent; their names do not.
        health.detail = _reason(error)
    health.latency_duration.CopyFrom(_duration(time.monotonic_ns() - started))
    health.is_healthy = not health.detail
    PROBES.labels("healthy" if health.is_healthy else "unhealthy").inc()
    return health


async def _ask(session: ClientSession, provider: Provider, secret: str) -> tuple[int, str]:
    headers = {
        **_headers(provider.dialects, secret),
        "accept": "application/json",
        "accept-encoding": "identity",
    }
    url = f"{provider.base_url}/v1/models"
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        return response.status, await _detail(response)


def _headers(dialects: Sequence[int], secret: str) -> dict[str, str]:
    """The credential as the provider's first dialect presents it."""
    if dialects[0] == usage_pb2.DIALECT_ANTHROPIC:
        return {"x-api-key": secret, "anthropic-version": ANTHROPIC_VERSION}
    return {"authorization": f"Bearer {secret}"}


async def _detail(response: ClientResponse) -> str:
    if response.status == 200:
        start = await response.content.read(MAX_BODY_BYTES)
        return "" if start.lstrip()[:1] in (b"{", b"[") else "the answer is not JSON"
    if 300 <= response.status < 400:
        return "the provider redirects, which is not followed"
    return _DETAILS.get(response.status, f"the provider answered {response.status}")


def _reason(error: Exception) -> str:
    if isinstance(getattr(error, "os_error", None), AddressRefused):
        return "the address is not allowed; see LURUS_ALLOWED_HTTP_HOSTS"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host is not known"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the certificate is not valid for this host"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection to the provider"
    return f"the provider did not answer properly ({type(error).__name__})"


def _duration(nanoseconds: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(nanoseconds)
    return duration
