"""Two shows of money on one mesh: a burst on a small budget with billing killed in it, and hung-up calls."""

import asyncio
import itertools
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.chaos.audit import WAIT_SECONDS, Audit, running_audit
from tests.chaos.invariants import price_of
from tests.chaos.killer import Killer
from tests.chaos.ledgers import Books
from tests.chaos.load import Callers, Seen, Wanted
from tests.support.mesh import eventually

WORDS = 30
COST = price_of((12, 3, 0, 0, 0, 0, WORDS))
# A lease is worth two calls, so that ten calls' money is lent to both workers, piece by piece.
LEASE = 2 * COST
BUDGET_CALLS = 10
BURST = 200
# Enough at once that both workers get some: the kernel deals out connections by chance.
WARM_CALLS = 8
WARM_ROUNDS = 8
# Of the budget, in a burst (reliability P4).
OVERSPEND_RATIO = 0.02
# With statuses: what a client is told whose account, or whose accounting, is out of money.
REFUSALS = {429, 402, 503}
AFTER_CONTENT, AT_ANY_INSTANT = 100, 200
AT_ONCE = 25
ROUNDS = 4
QUIET_SECONDS = 120.0
LOST_SECONDS = 2.0

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audit]:
    data_dir = tmp_path_factory.mktemp("chaos-money")
    with running_audit(data_dir, lease_nano_usd=str(LEASE)) as audit:
        audit.prepare()
        yield audit


def settled(chaos: Audit, callers: Callers) -> Books:
    """Waits until all is booked; fails if an invariant is broken."""
    books, findings = asyncio.run(chaos.settle(callers, LOST_SECONDS, QUIET_SECONDS))
    assert not any(found.broken for found in findings), [found for found in findings if found.broken]
    return books


def whole_calls(count: int) -> list[Wanted]:
    """Calls of all dialects, streamed and plain by turns, that cost the same."""
    kinds = itertools.cycle(itertools.product("ACR", (True, False)))
    return [
        Wanted(dialect, is_streaming, WORDS, 20)
        for (dialect, is_streaming), _ in zip(kinds, range(count), strict=False)
    ]


def balance(chaos: Audit, account_id: str) -> int:
    """What the ledger has of an account."""
    found = chaos.mesh.rest("GET", f"balance?account_id={account_id}")
    return int(found.get("balance_nano_usd", 0))


def answers(chaos: Audit, account_id: str) -> bool:
    """Whether billing is there."""
    with suppress(AssertionError, httpx.HTTPError):
        balance(chaos, account_id)
        return True
    return False


def warm_workers(chaos: Audit, account_id: str, key: str) -> Callers:
    """Lets both workers learn what a call costs; leaves money for ten calls."""
    warming = Callers([chaos.mesh.base_url], {account_id: key}, 1, prefix="warm")
    served: set[str] = set()
    for _ in range(WARM_ROUNDS):
        asyncio.run(warming.burst(whole_calls(WARM_CALLS), WARM_CALLS))
        books = settled(chaos, warming)
        served = {books.events[seen.request_id].worker_id for seen in warming.seen if seen.is_whole}
        if len(served) == 2:
            break
    assert len(served) == 2, served
    change = BUDGET_CALLS * COST - balance(chaos, account_id)
    body: dict[str, Any] = {"transaction_id": "tx_burst", "account_id": account_id}
    body |= {"kind": "TRANSACTION_KIND_ADJUSTMENT", "amount_nano_usd": str(change)}
    chaos.mesh.rest("POST", "transactions", json=body)
    assert balance(chaos, account_id) == BUDGET_CALLS * COST
    return warming


def kill_billing_amid(chaos: Audit) -> threading.Thread:
    """Kills billing as soon as the provider serves a call more than now."""
    count, killer = len(chaos.provider.calls), Killer(chaos.mesh, 1, 0.0)

    def kill() -> None:
        eventually(lambda: len(chaos.provider.calls) >= count + 1, WAIT_SECONDS)
        assert killer.kill("billing")

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.row("F41", "F36")
def test_200_at_once_on_money_for_ten_with_billing_killed(chaos: Audit) -> None:
    account_id = "acct_burst"
    key = chaos.make_account(account_id, WARM_ROUNDS * WARM_CALLS * COST)
    warming = warm_workers(chaos, account_id, key)
    burst = Callers([chaos.mesh.base_url], {account_id: key}, 1, prefix="burst", seen=warming.seen)
    before = len(warming.seen)
    killing = kill_billing_amid(chaos)
    asyncio.run(burst.burst(whole_calls(BURST), BURST))
    killing.join()
    eventually(lambda: answers(chaos, account_id), WAIT_SECONDS)
    # What is left is spent by and by, and nothing more.
    asyncio.run(burst.burst(whole_calls(3 * BUDGET_CALLS), 2))
    calls = burst.seen[before:]
    outcomes = Counter((seen.outcome, seen.status) for seen in calls)
    books = settled(chaos, burst)
    spent = BUDGET_CALLS * COST - books.bank.balances[account_id]
    print({"outcomes": dict(outcomes), "spent_calls": spent / COST})
    assert 0 < spent <= BUDGET_CALLS * COST * (1 + OVERSPEND_RATIO), outcomes
    assert spent == COST * outcomes["whole", 200]
    assert {status for (outcome, status) in outcomes if outcome == "refused"} <= REFUSALS, outcomes
    assert {outcome for (outcome, _) in outcomes} == {"whole", "refused"}, outcomes


def left(calls: list[Seen], kind: str) -> list[Seen]:
    """Those that were left so, after they had seen something of the answer."""
    return [seen for seen in calls if seen.leaves == kind and seen.content_count]


@pytest.mark.row("F13", "F14")
def test_who_hangs_up_is_booked_once_and_pays(chaos: Audit) -> None:
    callers = Callers([chaos.mesh.base_url], chaos.keys, 2, prefix="leaving")
    chance = random.Random(2)
    eventually(lambda: answers(chaos, min(chaos.keys)), WAIT_SECONDS)
    # On a busy machine many of them leave before anything has come.
    for _ in range(ROUNDS):
        if len(left(callers.seen, "instant")) <= AT_ANY_INSTANT / 4:
            instants = [
                Wanted(chance.choice("ACR"), True, WORDS, 20, "instant", chance.random() * 0.9)
                for _ in range(AT_ANY_INSTANT)
            ]
            asyncio.run(callers.burst(instants, AT_ONCE))
    # And some are refused while a small lease is renewed: those are made again.
    for _ in range(ROUNDS):
        missing = AFTER_CONTENT - len(left(callers.seen, "content"))
        wanted = [Wanted("ACR"[number % 3], True, WORDS, 20, "content") for number in range(missing)]
        asyncio.run(callers.burst(wanted, AT_ONCE))
    books = settled(chaos, callers)
    rows = {row.request_id: row for row in books.booked}
    marks = Counter(event.user_agent for event in books.events.values())
    after_content, at_any_instant = left(callers.seen, "content"), left(callers.seen, "instant")
    print({"after content": len(after_content), "at any instant": len(at_any_instant)})
    assert len(after_content) == AFTER_CONTENT and len(at_any_instant) > AT_ANY_INSTANT / 4
    for seen in [*after_content, *at_any_instant]:
        assert marks[seen.mark] == 1
        assert rows[seen.request_id].cost_nano_usd > 0, seen
    # Every one of them that reached the provider, whether or not its client has seen anything of it.
    served = {call.mark for call in books.served} & {seen.mark for seen in callers.seen}
    booked = Counter(books.events[row.request_id].user_agent for row in books.booked)
    assert all(booked[mark] == 1 for mark in served)
    # Who has read every word but no count pays for the words: at most the estimate's rounding is missing.
    for seen in after_content:
        assert rows[seen.request_id].tokens[-1] >= WORDS - 3, seen
