"""The service's side of the bus: consumes usage into the ledger, and publishes what callers report."""

from collections.abc import Sequence

from nats.aio.client import Client
from protovalidate import Validator

from lurus.billing.v1.billing_pb2 import DeadLetter
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing import dead_letters, ledger
from lurus_billing.metrics import count_settled
from lurus_billing.store import DATA_ERRORS, LedgerStore
from lurus_common import bus
from lurus_common.consumer import UsageConsumer
from lurus_common.errors import Conflict, DependencyUnavailable, InvalidRequest
from lurus_common.ids import new_id
from lurus_common.rpc import check_rules
from lurus_common.status import Dependency

DURABLE = "billing"


class UsageBus:
    """Connects when the bus is there, at start or later, and settles what comes.

    Args:
        url: of the bus.
        store: books the events.
        ack_wait_seconds: after so long the bus delivers again what is not acknowledged.
    """

    def __init__(self, url: str, store: LedgerStore, ack_wait_seconds: float = bus.ACK_WAIT_SECONDS) -> None:
        self._url = url
        self._ack_wait_seconds = ack_wait_seconds
        self._store = store
        self._client: Client | None = None
        self._consumer: UsageConsumer | None = None
        self._problem = ""
        self._validator = Validator()

    def describe(self, row: Dependency) -> None:
        """Brings up to date whether the bus answers, and how far the ledger is behind it."""
        bus.describe(row, self._client)
        if self._consumer is not None:
            self._consumer.describe(row)

    async def problems(self) -> dict[str, str]:
        """What an operator has to mend: a bus that is away mends itself, a wrong stream does not."""
        problem = self._consumer.problem if self._consumer else self._problem
        return {"usage": problem} if problem else {}

    async def run(self) -> None:
        """Consumes until `stop`; the batch at hand is committed and acknowledged first.

        Raises:
            NatsError: if the URL is not one.
        """
        try:
            self._client = await bus.connect(self._url, DURABLE)
        except bus.NatsError as error:
            self._problem = f"LURUS_NATS_URL: {error}"
            raise
        try:
            jetstream = self._client.jetstream()
            self._consumer = UsageConsumer(
                jetstream,
                DURABLE,
                self._settle,
                self._store.park,
                DATA_ERRORS,
                ack_wait_seconds=self._ack_wait_seconds,
            )
            await self._consumer.run()
        finally:
            await self._client.close()

    def stop(self) -> bool:
        """Lets `run` return; False if it is still looking for the bus and has to be cancelled."""
        if self._consumer is None:
            return False
        self._consumer.stop()
        return True

    async def publish(self, event: UsageEvent) -> bool:
        """Puts an event on the bus; returns whether the bus knew it already.

        Raises:
            InvalidRequest: if the ledger could not book it.
            DependencyUnavailable: if the bus is away; the event may be there all the same.
        """
        try:
            ledger.usage_entry(event)
        except ledger.EventRefused as error:
            raise InvalidRequest(str(error), param="event") from error
        if self._client is None or not self._client.is_connected:
            raise _away()
        payload = event.SerializeToString()
        try:
            ack = await bus.publish(
                self._client.jetstream(), event.request_id, bus.subject_of(event), payload
            )
        except (bus.NatsError, OSError) as error:
            raise _away() from error
        return bool(ack.duplicate)

    @property
    def client(self) -> Client | None:
        """The connection, None until there was one."""
        return self._client

    async def publish_again(self, event: UsageEvent) -> None:
        """Puts an event on the bus that may be there, under another message id: it comes to all again.

        Raises:
            DependencyUnavailable: if the bus is away.
        """
        if self._client is None or not self._client.is_connected:
            raise _away()
        again = new_id(f"again_{event.request_id}")
        payload = event.SerializeToString()
        try:
            await bus.publish(self._client.jetstream(), again, bus.subject_of(event), payload)
        except (bus.NatsError, OSError) as error:
            raise _away() from error

    async def replay(self, letter: DeadLetter) -> None:
        """Books the event of a parked letter as if it came from the bus now; once, however often.

        Raises:
            FailedPrecondition: if it still cannot be booked.
            Conflict: if its request is booked with another content.
        """
        event = dead_letters.replayable(letter)
        try:
            check_rules(self._validator, event)
            settled = await self._store.settle([event])
        except DATA_ERRORS as error:
            raise dead_letters.unbookable(letter, str(error)) from error
        count_settled(settled)
        if not settled.count and not settled.repeat_count and not ledger.is_idle(ledger.usage_entry(event)):
            raise Conflict(
                "the request is booked with another content", resource="receipt", id=event.request_id
            )

    async def _settle(self, events: Sequence[UsageEvent]) -> None:
        count_settled(await self._store.settle(events))


def _away() -> DependencyUnavailable:
    return DependencyUnavailable("the bus did not answer; report the same event again", dependency="nats")
