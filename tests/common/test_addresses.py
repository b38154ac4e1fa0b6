"""Where outgoing calls may go: every trick of the request-forgery table, at write and at connect."""

import ipaddress
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientConnectorError, ClientSession, web
from aiohttp.abc import AbstractResolver, ResolveResult

from lurus_common.addresses import (
    GuardedConnector,
    GuardedResolver,
    is_public,
    parse_base_url,
    refuse_private_name,
)
from lurus_common.errors import InvalidRequest

NOBODY: frozenset[str] = frozenset()
pytestmark = pytest.mark.anyio

PRIVATE_HOSTS = """
    127.0.0.1 127.1 0177.0.0.1 2130706433 0x7f.1 0x7f000001 0 0.0.0.0 127.0.0.1.  017700000001 1.2.3
    10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 100.100.100.200 192.0.0.1 192.0.2.1
    198.18.0.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 192.88.99.1 168.63.129.16
    [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b::a00:1]
    [64:ff9b:1::1] [2002:7f00:1::] [2002:a00:1::1] [2001:0:7f00:1::] [2001::1] [2001:db8::1] [fc00::1]
    [fd00:ec2::254] [fe80::1] [fe80::1%25eth0] [fec0::1] [ff02::1] [100::1] [3fff::1] [5f00::1]
    [2606:4700:0:0:0:5efe:a00:1] [1::2::3] [::ffff:0177.0.0.1]
    user@api.anthropic.com user:password@api.anthropic.com api.anthropic.com@127.0.0.1
    api.anthropic.com\\@127.0.0.1 127.0.0.1%2f.example %31%32%37.0.0.1 １２７.0.0.1 exämple.com a..b -a.b
    """


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("https://api.anthropic.com", "https://api.anthropic.com"),
        ("HTTPS://API.Anthropic.com:443/", "https://api.anthropic.com"),
        ("https://gateway.example/openai/", "https://gateway.example/openai"),
        ("https://8.8.8.8:8443/a/b", "https://8.8.8.8:8443/a/b"),
        ("https://[2001:4860:4860:0:0:0:0:8888]", "https://[2001:4860:4860::8888]"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("https://[::1]:9", "https://[::1]:9"),
    ],
)
@pytest.mark.row("B48")
def test_a_base_url_has_one_spelling(text: str, normal: str) -> None:
    url = parse_base_url(text, frozenset({"localhost", "127.0.0.1", "::1"}))
    assert str(url) == normal
    assert parse_base_url(normal, frozenset({"localhost", "127.0.0.1", "[::1]"})) == url


@pytest.mark.parametrize("host", PRIVATE_HOSTS.split())
@pytest.mark.row("B48")
def test_a_host_that_is_not_public_is_refused(host: str) -> None:
    for scheme in ("https", "http"):
        with pytest.raises(InvalidRequest) as caught:
            parse_base_url(f"{scheme}://{host}", NOBODY)
        assert caught.value.metadata == {"param": "base_url"}


@pytest.mark.parametrize(
    "text",
    [
        "http://api.anthropic.com",
        "ftp://api.anthropic.com",
        "file:///etc/passwd",
        "//api.anthropic.com",
        "https://",
        "https:///path",
        "https://a.example?x=1",
        "https://a.example/?",
        "https://a.example/#f",
        "https://a.example/../b",
        "https://a.example//b",
        "https://a.example/%2e%2e",
        "https://a.example/v1",
        "https://a.example/v1/",
        "https://a.example:0",
        "https://a.example:65536",
        "https://a.example:１",
        " https://a.example",
        "https://a.example\n",
        "https://a.ex\tample",
        "https://a.example\x00",
    ],
)
@pytest.mark.row("B48")
def test_what_is_not_a_plain_https_url_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_base_url(text, NOBODY)


@pytest.mark.parametrize("address", ["64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8", "1.1.1.1"])
def test_a_wrapped_public_address_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.row("B48")
async def test_a_name_is_refused_at_write_by_what_it_resolves_to() -> None:
    url = parse_base_url("https://localhost", NOBODY)
    with pytest.raises(InvalidRequest):
        await refuse_private_name(url, NOBODY)
    await refuse_private_name(url, frozenset({"localhost"}))
    await refuse_private_name(parse_base_url("https://no-such-name.invalid", NOBODY), NOBODY)


class Answers(AbstractResolver):
    """A resolver with these answers to everything."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


async def empty_answer(_: web.Request) -> web.Response:
    return web.Response()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a server on the loopback address."""
    app = web.Application()
    app.add_routes([web.get("/", empty_answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize(
    "url", ["http://localhost", "http://127.0.0.1", "https://localhost", "https://127.1"]
)
@pytest.mark.row("B48")
async def test_the_connector_refuses_private_hosts_that_are_not_listed(url: str, port: int) -> None:
    async with ClientSession(connector=GuardedConnector(NOBODY)) as session:
        with pytest.raises(ClientConnectorError, match=r"not public|plain http"):
            await session.get(f"{url}:{port}/")


async def test_the_connector_reaches_listed_hosts(port: int) -> None:
    hosts = frozenset({"localhost", "127.0.0.1"})
    async with ClientSession(connector=GuardedConnector(hosts)) as session:
        for host in hosts:
            async with session.get(f"http://{host}:{port}/") as response:
                assert response.status == 200


@pytest.mark.row("B48", "F44")
async def test_a_name_that_is_rebound_after_the_write_is_refused_at_connect() -> None:
    resolver = GuardedResolver(NOBODY)
    resolver._inner = Answers("93.184.216.34", "10.0.0.1")
    connector = GuardedConnector(NOBODY)
    connector._resolver = resolver
    async with ClientSession(connector=connector) as session:
        with pytest.raises(ClientConnectorError, match="not public"):
            await session.get("https://rebound.example/")
