"""The bus: one JetStream stream of usage events and its consumers, declared here and nowhere else."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    PubAck,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import APIError, NotFoundError

from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_common.status import Dependency

log = logging.getLogger(__name__)

STREAM_NAME = "USAGE"
SUBJECT_PREFIX = "lurus.v1.usage"
SUBJECTS = f"{SUBJECT_PREFIX}.>"
DAY_SECONDS = 86_400
CONNECT_SECONDS = 2
RECONNECT_SECONDS = 0.2
PUBLISH_SECONDS = 5.0
CREATE_ATTEMPTS = 4
CREATE_WAIT_SECONDS = 0.05

# `discard: new` refuses to publish when full, where the default would delete
# unread money. The window is an optimisation; the ledger's key is the guarantee.
STREAM = StreamConfig(
    name=STREAM_NAME,
    subjects=[SUBJECTS],
    retention=RetentionPolicy.LIMITS,
    storage=StorageType.FILE,
    discard=DiscardPolicy.NEW,
    max_age=14 * DAY_SECONDS,
    max_bytes=8 * 1024**3,
    duplicate_window=600,
    deny_delete=True,
    deny_purge=True,
    num_replicas=1,
)
# What must agree for a stream made by others; the rest is the operator's choice.
_CHECKED = ("subjects", "retention", "storage", "discard", "deny_delete", "deny_purge")
ACK_WAIT_SECONDS = 30.0
MAX_ACK_PENDING = 2000
# Of a consumer: what else would skip events, give them up, or take them for done unasked.
_CONSUMER_CHECKED = ("ack_policy", "deliver_policy", "filter_subject", "max_deliver")
# What follows the settings of who starts last.
_CONSUMER_KEPT = ("ack_wait", "max_ack_pending")


class StreamMismatch(Exception):
    """The stream, or a consumer of it, exists and is not what this program relies on."""


async def connect(url: str, name: str, on_reconnect: Callable[[], Awaitable[None]] | None = None) -> Client:
    """Returns a connection that reconnects for ever.

    Args:
        url: `nats://TOKEN@HOST:PORT`.
        name: who connects, shown by the server.
        on_reconnect: called after each reconnect.
    """

    async def on_error(error: Exception) -> None:
        log.warning("bus: %s", error or type(error).__name__)

    return await nats.connect(
        url,
        name=name,
        connect_timeout=CONNECT_SECONDS,
        reconnect_time_wait=RECONNECT_SECONDS,
        max_reconnect_attempts=-1,
        allow_reconnect=True,
        error_cb=on_error,
        reconnected_cb=on_reconnect,
        pending_size=8 * 1024 * 1024,
    )


async def ensure_stream(jetstream: JetStreamContext) -> StreamInfo:
    """Creates the stream if there is none, and checks it if there is.

    Raises:
        StreamMismatch: names each property that differs.
    """
    found = await _found_or_added(jetstream)
    if problems := _differences(found.config, STREAM, _CHECKED):
        raise StreamMismatch(f"stream {STREAM_NAME}: {problems}")
    return found


def consumer_config(durable: str, ack_wait_seconds: float = ACK_WAIT_SECONDS) -> ConsumerConfig:
    """Returns what each durable consumer is: it gets every event, until it is acknowledged."""
    return ConsumerConfig(
        durable_name=durable,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_seconds,
        max_ack_pending=MAX_ACK_PENDING,
        max_deliver=-1,
        filter_subject=SUBJECTS,
    )


async def ensure_consumer(
    jetstream: JetStreamContext, durable: str, ack_wait_seconds: float = ACK_WAIT_SECONDS
) -> None:
    """Creates a durable consumer if there is none; if there is one, checks it and gives it its times.

    Raises:
        StreamMismatch: names each property that differs and cannot be changed.
    """
    wanted = consumer_config(durable, ack_wait_seconds)
    try:
        found = (await jetstream.consumer_info(STREAM_NAME, durable)).config
    except NotFoundError:
        await jetstream.add_consumer(STREAM_NAME, wanted)
        return
    if problems := _differences(found, wanted, _CONSUMER_CHECKED):
        raise StreamMismatch(f"consumer {durable}: {problems}")
    if _differences(found, wanted, _CONSUMER_KEPT):
        await jetstream.add_consumer(STREAM_NAME, wanted)


def describe(row: Dependency, client: Client | None) -> None:
    """Brings up to date whether the bus answers, as far as a connection can tell without asking it."""
    if client is not None and client.is_connected:
        row.succeed()
    else:
        row.fail("no connection")


def _differences(found: object, wanted: object, names: tuple[str, ...]) -> str:
    return "; ".join(
        f"{name} is {getattr(found, name)!r}, must be {getattr(wanted, name)!r}"
        for name in names
        if getattr(found, name) != getattr(wanted, name)
    )


async def _found_or_added(jetstream: JetStreamContext) -> StreamInfo:
    """Finds or creates the stream; of several starters at once all but one may be refused for a moment."""
    for attempt in range(CREATE_ATTEMPTS):
        try:
            return await jetstream.stream_info(STREAM_NAME)
        except NotFoundError:
            await asyncio.sleep(attempt * CREATE_WAIT_SECONDS)
        try:
            return await jetstream.add_stream(STREAM)
        except APIError as error:
            log.info("the stream was not created: %s", error)
    return await jetstream.add_stream(STREAM)


def subject_of(event: UsageEvent) -> str:
    """The subject of an event. Account ids hold no dot, so it has a fixed depth."""
    return f"{SUBJECT_PREFIX}.{event.account_id}"


async def publish(jetstream: JetStreamContext, request_id: str, subject: str, payload: bytes) -> PubAck:
    """Publishes an event and waits until the stream has it.

    Raises:
        NatsError: if it could not be stored; it may have been all the same.
    """
    return await jetstream.publish(
        subject, payload, timeout=PUBLISH_SECONDS, stream=STREAM_NAME, headers={"Nats-Msg-Id": request_id}
    )


__all__ = [
    "STREAM_NAME",
    "NatsError",
    "StreamMismatch",
    "connect",
    "describe",
    "ensure_consumer",
    "ensure_stream",
    "publish",
    "subject_of",
]
