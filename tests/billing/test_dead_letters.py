"""Events for a person: listed, replayed once what was wrong is mended, resolved; never charged twice."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from prometheus_client import REGISTRY
from tests.billing.calls import refused
from tests.billing.test_store import balance, top_up

from lurus.billing.v1 import billing_pb2 as pb
from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from lurus_billing import sweeper
from lurus_billing.dead_letters import DeadLetterStore
from lurus_billing.reservation_store import ReservationStore
from lurus_billing.store import LedgerStore
from lurus_common.consumer import ParkedEvent
from lurus_common.ids import new_id

pytestmark = pytest.mark.anyio
Make = Callable[..., UsageEvent]
PARKED, CONFLICT = pb.DEAD_LETTER_CAUSE_PARKED, pb.DEAD_LETTER_CAUSE_CONFLICT


@pytest.fixture
async def empty(pool: asyncpg.Pool) -> None:
    """No letters from other tests."""
    await pool.execute("DELETE FROM billing.dead_letter")


async def parked(store: LedgerStore, payload: bytes, reason: str = "why") -> None:
    number = int.from_bytes(hashlib.sha256(payload).digest()[:4], "big")
    await store.park(ParkedEvent(number, "lurus.v1.usage.acct_a", payload, reason))


async def listed(stub: Any, **fields: Any) -> list[pb.DeadLetter]:
    return list((await stub.ListDeadLetters(pb.ListDeadLettersRequest(**fields))).dead_letters)


def sample(cause: str) -> float | None:
    return REGISTRY.get_sample_value("lurus_dead_letters", {"cause": cause})


@pytest.mark.usefixtures("empty")
class TestList:
    async def test_it_shows_what_came_and_why_it_is_here(
        self, stub: Any, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        await parked(ledger_store, b"\xff garbage", "unreadable")
        first = make_event(account_id, 10)
        other = make_event(account_id, 99, request_id=first.request_id)
        await ledger_store.settle([first, other])
        conflict, garbage = await listed(stub)
        assert (conflict.cause, garbage.cause) == (CONFLICT, PARKED)
        assert (conflict.request_id, garbage.request_id) == (first.request_id, "")
        assert UsageEvent.FromString(conflict.payload) == other
        assert (garbage.payload, garbage.reason) == (b"\xff garbage", "unreadable")
        assert garbage.subject == "lurus.v1.usage.acct_a"
        assert not conflict.HasField("resolve_time")
        assert [letter.cause for letter in await listed(stub, cause=PARKED)] == [PARKED]

    async def test_pages_go_from_the_newest_and_fit_a_message(
        self, stub: Any, ledger_store: LedgerStore
    ) -> None:
        for number in range(6):
            await parked(ledger_store, bytes([number]) * 900_000)
        seen: list[int] = []
        request = pb.ListDeadLettersRequest(page_size=4)
        while True:
            page = await stub.ListDeadLetters(request)
            seen += [letter.payload[0] for letter in page.dead_letters]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        assert seen == [5, 4, 3, 2, 1, 0]
        error = await refused(stub.ListDeadLetters(pb.ListDeadLettersRequest(page_size=-1)))
        assert error.reason == "INVALID_REQUEST"

    async def test_what_is_resolved_is_shown_on_request_only_and_counted_no_more(
        self, stub: Any, ledger_store: LedgerStore, pool: asyncpg.Pool
    ) -> None:
        for number in range(3):
            await parked(ledger_store, b"\xff" + bytes([number]))
        newest = (await listed(stub))[0]
        request = pb.ResolveDeadLetterRequest(
            dead_letter_id=newest.dead_letter_id, resolution="a test wrote it"
        )
        letter = (await stub.ResolveDeadLetter(request)).dead_letter
        assert letter.resolution == "a test wrote it"
        request.resolution = "something else"
        assert (await stub.ResolveDeadLetter(request)).dead_letter == letter
        assert newest.dead_letter_id not in [one.dead_letter_id for one in await listed(stub)]
        assert (await listed(stub, includes_resolved=True))[0] == letter
        await sweeper.sweep(ReservationStore(pool), DeadLetterStore(pool))
        assert (sample("parked"), sample("conflict")) == (2, 0)

    @pytest.mark.parametrize("dead_letter_id", ["", "1", "dl_", "dl_x", "dl_1\n", "dl_" + "9" * 19])
    async def test_ids_of_others_are_the_callers_fault(self, stub: Any, dead_letter_id: str) -> None:
        replay = pb.ReplayDeadLetterRequest(dead_letter_id=dead_letter_id)
        assert (await refused(stub.ReplayDeadLetter(replay))).reason == "INVALID_REQUEST"
        resolve = pb.ResolveDeadLetterRequest(dead_letter_id=dead_letter_id, resolution="x")
        assert (await refused(stub.ResolveDeadLetter(resolve))).reason == "INVALID_REQUEST"

    async def test_unknown_letters_are_not_found(self, stub: Any) -> None:
        replay = pb.ReplayDeadLetterRequest(dead_letter_id="dl_999999999999999999")
        assert (await refused(stub.ReplayDeadLetter(replay))).reason == "NOT_FOUND"
        resolve = pb.ResolveDeadLetterRequest(dead_letter_id="dl_999999999999999999", resolution="x")
        assert (await refused(stub.ResolveDeadLetter(resolve))).reason == "NOT_FOUND"


@pytest.mark.usefixtures("empty")
class TestReplay:
    async def replay(self, stub: Any, letter: pb.DeadLetter) -> pb.DeadLetter:
        request = pb.ReplayDeadLetterRequest(dead_letter_id=letter.dead_letter_id)
        return (await stub.ReplayDeadLetter(request)).dead_letter

    async def test_a_parked_event_is_booked_once_however_often_it_is_replayed(
        self, stub: Any, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        await parked(ledger_store, make_event(account_id, 30).SerializeToString())
        (letter,) = await listed(stub)
        answers = await asyncio.gather(*(self.replay(stub, letter) for _ in range(8)))
        assert {one.resolution for one in answers} == {"replayed: booked"}
        assert answers[0].HasField("resolve_time")
        assert await balance(pool, account_id) == -30
        assert await listed(stub) == []

    async def test_one_that_came_over_the_bus_all_the_same_is_not_booked_again(
        self, stub: Any, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        event = make_event(account_id, 30)
        await parked(ledger_store, event.SerializeToString())
        await ledger_store.settle([event])
        (letter,) = await listed(stub)
        assert (await self.replay(stub, letter)).HasField("resolve_time")
        assert await balance(pool, account_id) == -30

    @pytest.mark.parametrize("kind", ["garbage", "rules", "no_row"])
    async def test_what_still_cannot_be_booked_stays(
        self, stub: Any, ledger_store: LedgerStore, account_id: str, make_event: Make, kind: str
    ) -> None:
        negative = make_event(account_id, 5)
        negative.tokens.input = -5  # a row could hold it
        payload = {
            "garbage": b"\xff garbage",
            "rules": negative.SerializeToString(),
            "no_row": make_event(account_id, 5, model="a\0b").SerializeToString(),
        }[kind]
        await parked(ledger_store, payload)
        (letter,) = await listed(stub)
        request = pb.ReplayDeadLetterRequest(dead_letter_id=letter.dead_letter_id)
        error = await refused(stub.ReplayDeadLetter(request))
        assert (error.reason, error.metadata["id"]) == ("FAILED_PRECONDITION", letter.dead_letter_id)
        assert await listed(stub) == [letter]

    @pytest.mark.row("F39")
    async def test_a_conflict_is_never_charged_and_the_correction_is_another_transfer(
        self, stub: Any, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        first = make_event(account_id, 10)
        await ledger_store.settle([first])
        await ledger_store.settle([make_event(account_id, 99, request_id=first.request_id)])
        (letter,) = await listed(stub)
        request = pb.ReplayDeadLetterRequest(dead_letter_id=letter.dead_letter_id)
        assert (await refused(stub.ReplayDeadLetter(request))).reason == "FAILED_PRECONDITION"
        assert await balance(pool, account_id) == -10
        correction = top_up(account_id, -89)
        correction.kind = pb.TRANSACTION_KIND_ADJUSTMENT
        correction.corrects_transaction_id = first.request_id
        booked = (await stub.CreateTransaction(correction)).transaction
        assert booked.corrects_transaction_id == first.request_id
        assert await balance(pool, account_id) == -99

    @pytest.mark.row("F39")
    async def test_a_parked_event_whose_request_is_booked_otherwise_is_a_conflict(
        self, stub: Any, ledger_store: LedgerStore, pool: asyncpg.Pool, account_id: str, make_event: Make
    ) -> None:
        first = make_event(account_id, 10)
        await ledger_store.settle([first])
        other = make_event(account_id, 99, request_id=first.request_id)
        await parked(ledger_store, other.SerializeToString())
        (letter,) = await listed(stub)
        request = pb.ReplayDeadLetterRequest(dead_letter_id=letter.dead_letter_id)
        for _ in range(2):
            assert (await refused(stub.ReplayDeadLetter(request))).reason == "CONFLICT"
        assert await balance(pool, account_id) == -10
        assert {one.cause for one in await listed(stub)} == {PARKED, CONFLICT}

    async def test_a_refused_request_is_resolved_without_a_row(
        self, stub: Any, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        event = make_event(account_id, terminal=usage_pb2.TERMINAL_REFUSED)
        event.ClearField("tokens")
        await parked(ledger_store, event.SerializeToString())
        (letter,) = await listed(stub)
        assert (await self.replay(stub, letter)).HasField("resolve_time")
        page = await ledger_store.transactions(pb.ListTransactionsRequest(account_id=account_id))
        assert not page.transactions


class TestCorrections:
    async def test_only_adjustments_of_the_accounts_own_transactions_correct(
        self, stub: Any, ledger_store: LedgerStore, account_id: str, make_event: Make
    ) -> None:
        event = make_event(account_id, 10)
        stranger = make_event("acct_stranger", 10)
        await ledger_store.settle([event, stranger])
        request = top_up(account_id, 5)
        request.corrects_transaction_id = event.request_id
        assert (await refused(stub.CreateTransaction(request))).reason == "INVALID_REQUEST"
        request.kind = pb.TRANSACTION_KIND_ADJUSTMENT
        for corrected in (stranger.request_id, new_id("req")):
            request.corrects_transaction_id = corrected
            assert (await refused(stub.CreateTransaction(request))).reason == "NOT_FOUND"
        request.corrects_transaction_id = event.request_id
        first = await stub.CreateTransaction(request)
        assert await stub.CreateTransaction(request) == first
        request.corrects_transaction_id = ""
        assert (await refused(stub.CreateTransaction(request))).reason == "ALREADY_EXISTS"
