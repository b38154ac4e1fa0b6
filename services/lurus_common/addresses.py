"""Where outgoing calls may go: the guard against server-side request forgery, at write and at connect.

A base URL is https to a public address. Hosts that the operator lists
(`LURUS_ALLOWED_HTTP_HOSTS`) may also be plain http or have any address.
"""

import asyncio
import errno
import ipaddress
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

from aiohttp import ClientConnectorError, ClientRequest, ClientTimeout, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from lurus_common.errors import InvalidRequest

RESOLVE_SECONDS = 2.0
DEFAULT_PORTS = {"https": 443, "http": 80}
MAX_NAME_CHARACTERS = 253

# The whole grammar we accept, so that no two parsers can disagree about it:
# no userinfo, query, fragment, backslash, escape, control or non-ASCII character.
_BASE_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[A-Za-z0-9._~$+,;=:-]+)*)/*",
    re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)

Address = IPv4Address | IPv6Address

# What `is_global` of Python 3.11 lets through and no provider can have: the relay anycast of
# 6to4, the wire server of Azure's machines, local NAT64, segment routing, documentation.
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "192.88.99.0/24",
        "168.63.129.16/32",
        "fec0::/10",
        "64:ff9b:1::/48",
        "5f00::/16",
        "3fff::/20",
        "100::/64",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


class AddressRefused(OSError):
    """A host has an address, or is called in a way, that the settings do not allow."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EACCES, message)

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """A base URL in its one spelling: lower-case host, no default port, no slash at the end."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a credential is bound to."""
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{port}"

    def __str__(self) -> str:
        return self.origin + self.path


def parse_base_url(text: str, http_hosts: frozenset[str], param: str = "base_url") -> BaseUrl:
    """Returns a base URL that may be called, as far as its text can tell.

    Args:
        text: as the operator wrote it.
        http_hosts: hosts that may be called with plain http, or at any address.
        param: path of the field, for the caller.

    Raises:
        InvalidRequest: says what is wrong with it.
    """
    try:
        url = _parse(text)
        refuse_unsafe(url.scheme, url.host, http_hosts)
    except (ValueError, AddressRefused) as error:
        raise InvalidRequest(f"{param}: {error}", param=param) from None
    return url


def _parse(text: str) -> BaseUrl:
    match = _BASE_URL.fullmatch(text)
    if match is None:
        raise ValueError("write https://HOST[:PORT][/PATH], without user, query or fragment")
    scheme, host = match["scheme"].lower(), match["host"].lower().strip("[]")
    port = int(match["port"] or DEFAULT_PORTS[scheme])
    if not 0 < port < 65536:
        raise ValueError("the port must be between 1 and 65535")
    segments = match["path"].split("/")
    if {".", ".."} & set(segments):
        raise ValueError("the path must not contain `.` or `..`")
    if segments[-1] == "v1":
        raise ValueError("write it without `/v1`, which every call adds")
    return BaseUrl(scheme, _canonical_host(host), port, match["path"])


def _canonical_host(host: str) -> str:
    if ":" in host:
        return str(IPv6Address(host))
    labels = host.split(".")
    if len(host) > MAX_NAME_CHARACTERS or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("the host is not a name or an address")
    if _NUMBER.fullmatch(labels[-1]):
        # getaddrinfo takes 127.1, 2130706433 and 0x7f.1 for addresses: only one spelling is ours.
        return str(IPv4Address(host))
    return host


def refuse_unsafe(scheme: str, host: str, http_hosts: frozenset[str]) -> None:
    """Raises AddressRefused if a URL may not be called, as far as its scheme and host can tell.

    A name passes: what it resolves to is checked by `refuse_private_name` and at connect.
    """
    if is_listed(host, http_hosts):
        return
    if scheme != "https":
        raise AddressRefused(f"plain http to {host} is not allowed; see LURUS_ALLOWED_HTTP_HOSTS")
    if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]):
        refuse_private(host, [host])


def is_listed(host: str, http_hosts: frozenset[str]) -> bool:
    """Whether the operator has allowed `host` by its name or address."""
    return host in http_hosts or f"[{host}]" in http_hosts


def refuse_private(host: str, addresses: Sequence[str]) -> None:
    """Raises AddressRefused unless all `addresses` of `host` are public."""
    for text in addresses:
        try:
            is_allowed = is_public(ipaddress.ip_address(text))
        except ValueError:
            is_allowed = False
        if not is_allowed:
            raise AddressRefused(f"{host} has an address that is not public; see LURUS_ALLOWED_HTTP_HOSTS")


def is_public(address: Address) -> bool:
    """Whether an address, and every address inside it, belongs to the public internet."""
    return all(
        inner.is_global
        and not inner.is_multicast
        and not inner.is_reserved
        and not any(inner.version == network.version and inner in network for network in _REFUSED)
        for inner in _unwrapped(address)
    )


def _unwrapped(address: Address) -> Iterator[Address]:
    """Yields what a packet to `address` may reach: the IPv4 addresses inside it, else itself."""
    if isinstance(address, IPv4Address):
        yield address
        return
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped or address in _NAT64 or address in _COMPATIBLE:
        yield low
    elif address.sixtofour:
        yield address.sixtofour
    elif address.teredo:
        yield from address.teredo
    else:
        yield address
        if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
            yield low


async def refuse_private_name(url: BaseUrl, http_hosts: frozenset[str], param: str = "base_url") -> None:
    """Refuses a name that resolves to an address that is not public.

    One that does not resolve here and now passes: the caller may be elsewhere,
    and what it connects to is checked then.

    Raises:
        InvalidRequest: says so.
    """
    if is_listed(url.host, http_hosts):
        return
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        refuse_private(url.host, [str(row[4][0]) for row in found])
    except AddressRefused as error:
        raise InvalidRequest(f"{param}: {error}", param=param) from None
    except (OSError, UnicodeError):
        return


class GuardedConnector(TCPConnector):
    """Connects only where the settings allow, by the address that is really connected to.

    Args:
        http_hosts: hosts that may be called with plain http, or at any address.
        options: as for `aiohttp.TCPConnector`, without `resolver`.
    """

    def __init__(self, http_hosts: frozenset[str], **options: Any) -> None:
        super().__init__(resolver=GuardedResolver(http_hosts), **options)
        self._http_hosts = http_hosts

    async def connect(self, req: ClientRequest, *arguments: Any, **named: Any) -> Any:
        """Refuses what needs no resolver: plain http, and addresses."""
        try:
            refuse_unsafe(req.url.scheme, req.url.host or "", self._http_hosts)
        except AddressRefused as error:
            raise ClientConnectorError(req.connection_key, error) from error
        return await super().connect(req, *arguments, **named)

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Any],
        timeout: ClientTimeout,  # noqa: ASYNC109  # aiohttp's name for it
    ) -> Any:
        """Makes a connection in `timeout.sock_connect`: look-up, all addresses and TLS together."""
        async with asyncio.timeout(timeout.sock_connect):
            return await super()._create_connection(req, traces, timeout)


class GuardedResolver(AbstractResolver):
    """Resolves names, and refuses those with an address that is not public."""

    def __init__(self, http_hosts: frozenset[str]) -> None:
        self._inner = DefaultResolver()
        self._http_hosts = http_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns the addresses of `host`, all of them public or the host listed."""
        found = await self._inner.resolve(host, port, family)
        if not is_listed(host, self._http_hosts):
            refuse_private(host, [result["host"] for result in found])
        return found

    async def close(self) -> None:
        """Closes the resolver inside."""
        await self._inner.close()
