"""Whether a consumer of the bus has done all that was published."""

from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from lurus_common import bus


async def is_drained(jetstream: JetStreamContext, durable: str) -> bool:
    """Whether a durable consumer has acknowledged everything, up to the last message of the stream.

    What is pending says less: the server counts it up a moment after it has confirmed the message.
    """
    try:
        info = await jetstream.consumer_info(bus.STREAM_NAME, durable)
    except NotFoundError:  # not connected yet
        return False
    last = (await jetstream.stream_info(bus.STREAM_NAME)).state.last_seq
    return info.ack_floor is not None and info.ack_floor.stream_seq >= last
