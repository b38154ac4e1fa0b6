"""Settings: read once, from the environment, checked before anything starts.

Every field below is set by `LURUS_` and its name in capitals. An unknown
`LURUS_*` name stops the start, as does a value that does not fit, with the name
of the setting, what is wrong and what to write instead.
"""

import base64
import binascii
import difflib
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PREFIX = "LURUS_"
# Read by the shell, make or tests, not by `Settings`.
OTHER_NAMES = frozenset({"LURUS_API_KEY", "LURUS_BASE_URL", "LURUS_PYTHON", "LURUS_TEST_SLOW"})
MIN_SECRET_CHARACTERS = 16
KNOWN_DEFAULTS = frozenset({"changeme", "password", "secret", "admin", "123456", "lurus", "please-change-me"})

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Wait = Annotated[float, Meta(ge=0, le=86400)]
Count = Annotated[int, Meta(ge=1)]
Days = Annotated[float, Meta(ge=0, le=30 * 86400)]


class SettingsError(Exception):
    """A setting is unknown, missing or does not fit; the message says what to write."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of all processes. Times are seconds, sizes bytes. Port 0 means a free one."""

    profile: Literal["dev", "prod"] = "dev"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    data_dir: str = ""

    # Where this process listens.
    host: str = "127.0.0.1"
    ops_host: str = "127.0.0.1"
    edge_port: Port = 18100
    provider_port: Port = 18101
    log_port: Port = 18102
    billing_port: Port = 18103
    routing_port: Port = 18104
    sandbox_port: Port = 18105
    ops_port: Port = 0
    worker_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "worker-0"
    # The worker on the same disk whose place this one takes, if any: without billing it serves from that
    # one's leases.
    predecessor_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}$")] = ""

    # Where the others listen, as HOST:PORT.
    routing_address: str = "127.0.0.1:18104"
    provider_address: str = "127.0.0.1:18101"
    log_address: str = "127.0.0.1:18102"
    billing_address: str = "127.0.0.1:18103"

    # Stores. `lurus up` starts its own for each that is empty.
    database_url: str = ""
    nats_url: str = ""
    redis_url: str = ""
    clickhouse_url: str = ""

    # Secrets: the operator's token, the pepper of key verifiers, the key that
    # seals provider credentials (32 bytes in base64).
    admin_token: str = ""
    key_pepper: str = ""
    credential_key: str = ""

    # Hosts that a provider's base URL may name with plain http, or on a private address.
    allowed_http_hosts: str = "127.0.0.1,localhost"

    # How candidates of one level share their calls; a model may say otherwise.
    routing_policy: Literal["weight", "least_latency"] = "weight"

    # Timers of a call. Each provider may have its own for the first six. The third is the second
    # for models that think first.
    upstream_connect_seconds: Seconds = 5
    upstream_first_event_seconds: Seconds = 60
    upstream_thinking_seconds: Seconds = 300
    upstream_idle_seconds: Seconds = 120
    unary_total_seconds: Seconds = 600
    stream_total_seconds: Seconds = 3600
    heartbeat_seconds: Seconds = 15
    # How often a provider that rests after failures is asked for its list of models, which uses no
    # tokens. Each provider may be left out.
    probe_seconds: Seconds = 10
    drain_seconds: Seconds = 600
    # In the `prod` profile: how long work is still taken after readiness has gone.
    drain_announce_seconds: Wait = 5
    client_head_seconds: Seconds = 10
    client_body_seconds: Seconds = 60
    client_idle_seconds: Seconds = 75
    client_stall_seconds: Seconds = 60

    max_body_bytes: Count = 32 * 1024 * 1024
    max_live_requests: Count = 2000
    # An event loop that stays later than this makes a gateway worker refuse new chats (0: never), while
    # more than so many are being served.
    max_loop_late_seconds: Annotated[float, Meta(ge=0, le=60)] = 0.05
    min_live_requests: Count = 32
    # Request bodies in memory, until their answers begin.
    max_held_body_bytes: Count = 256 * 1024 * 1024
    # Of one gateway worker, which refuses new requests from 80 % on; 0: its part of the cgroup's limit.
    memory_limit_bytes: Annotated[int, Meta(ge=0)] = 0
    max_outbox_rows: Count = 4_500_000

    # Rate limits: how often workers tell each other through Redis what they have let pass, and how many
    # workers share each limit while they cannot, unless more have been seen.
    limit_exchange_seconds: Annotated[float, Meta(ge=0.05, le=5)] = 0.2
    gateway_workers: Annotated[int, Meta(ge=1, le=10_000)] = 1

    # After so long the bus delivers events again that a consumer has not said to be done; one that died
    # with some makes them wait for it. Shorter than an insert takes, they come twice, which costs only work.
    ack_wait_seconds: Annotated[float, Meta(ge=1, le=600)] = 30

    # Lago, which is told of all usage if its URL is set, such as http://HOST:PORT: the key of its
    # organization, and the code of its billable metric.
    lago_url: str = ""
    lago_api_key: str = ""
    lago_metric_code: Annotated[str, Meta(min_length=1, max_length=100)] = "lurus_usage"

    # What a lease is worth at most, and for how long.
    lease_nano_usd: Count = 1_000_000_000
    lease_seconds: Seconds = 60

    # Without its sources a worker goes on for so long: with the keys that it knows, with what is left
    # of a lease after its end, with the providers of the snapshot (0: for ever).
    offline_key_seconds: Days = 86_400
    offline_lease_seconds: Days = 86_400
    offline_snapshot_seconds: Days = 0

    def http_hosts(self) -> frozenset[str]:
        """Hosts that may be called with plain http or on a private address."""
        return frozenset(host.strip().lower() for host in self.allowed_http_hosts.split(",") if host.strip())

    def credential_key_bytes(self) -> bytes:
        """The 32 bytes that seal provider credentials.

        Raises:
            SettingsError: if they are missing or not 32 bytes in base64.
        """
        try:
            key = base64.b64decode(self.credential_key, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != 32:
            raise SettingsError(
                "LURUS_CREDENTIAL_KEY must be 32 bytes in base64; make one with: openssl rand -base64 32"
            )
        return key

    def require(self, *names: str) -> None:
        """Stops the start if one of the settings named is empty.

        Raises:
            SettingsError: names the first that is missing, and in the `prod`
                profile also a secret that is short or well known.
        """
        for name in names:
            value = getattr(self, name)
            if not value:
                raise SettingsError(f"{PREFIX}{name.upper()} is not set. {_HINTS.get(name, 'Set it.')}")
            if self.profile == "prod" and name in SECRET_SETTINGS:
                _refuse_weak(name, value)


SECRET_SETTINGS = frozenset({"admin_token", "key_pepper", "credential_key", "lago_api_key"})
_HINTS = {
    "database_url": "Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or use `lurus up`.",
    "nats_url": "Write nats://TOKEN@HOST:PORT, or use `lurus up`.",
    "redis_url": "Write redis://:PASSWORD@HOST:PORT/0, or use `lurus up`.",
    "clickhouse_url": "Write http://USER:PASSWORD@HOST:PORT/DATABASE, or use `lurus up`.",
    "admin_token": "Make one with: openssl rand -hex 32",
    "key_pepper": "Make one with: openssl rand -hex 32",
    "credential_key": "Make one with: openssl rand -base64 32",
    "lago_api_key": "Take it from Lago, under Developers.",
    "data_dir": "Name a directory for the outbox and other local state.",
}


def _refuse_weak(name: str, value: str) -> None:
    if len(value) < MIN_SECRET_CHARACTERS or value.lower() in KNOWN_DEFAULTS:
        raise SettingsError(
            f"{PREFIX}{name.upper()} is shorter than {MIN_SECRET_CHARACTERS} characters or a known default. "
            f"{_HINTS[name]}"
        )


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Returns the settings of an environment.

    Raises:
        SettingsError: one line for each setting that is unknown or does not fit.
    """
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    values: dict[str, object] = {}
    problems: list[str] = []
    for name, text in sorted(given.items()):
        field = fields.get(name.removeprefix(PREFIX).lower())
        if name in OTHER_NAMES:
            continue
        if field is None:
            problems.append(_unknown(name, fields))
            continue
        try:
            values[field.name] = msgspec.convert(text, field.type, strict=False)
        except msgspec.ValidationError as error:
            shown = "the value given" if field.name in SECRET_SETTINGS else repr(text)
            default = "" if field.name in SECRET_SETTINGS else f"; the default is {field.default!r}"
            problems.append(f"{name}: {shown} does not fit: {error}{default}")
    if problems:
        raise SettingsError("\n".join(problems))
    return Settings(**values)  # type: ignore[arg-type]  # checked field by field above


def _unknown(name: str, fields: Mapping[str, object]) -> str:
    known = [PREFIX + field.upper() for field in fields]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "see `lurus doctor --settings` for all names"
    return f"{name} is not a setting; {hint}"


def to_environment(settings: Settings) -> dict[str, str]:
    """Returns the environment that `read_settings` turns into the same settings again."""
    return {PREFIX + name.upper(): str(value) for name, value in msgspec.structs.asdict(settings).items()}
