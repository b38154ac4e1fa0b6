"""The short form of the audit, what its invariants notice, and whom its killer lets live."""

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from lurus.usage.v1 import usage_pb2
from lurus.usage.v1.usage_pb2 import UsageEvent
from tests.chaos import audit
from tests.chaos.invariants import INVARIANTS, examine, price_of
from tests.chaos.killer import COMMANDS, Killer
from tests.chaos.ledgers import Bank, Booked, Books, Logged, Served
from tests.chaos.load import Seen
from tests.support.mesh import Mesh

# Its kills begin with both consumers.
SEED = 360
LOAD_SECONDS = 11.0
KILL_PAUSE_SECONDS = 1.1
LEAST_KILLS = 6
# On a machine with other things to do a worker may read late what a provider has sent.
LOST_SECONDS = 2.0


@pytest.mark.timeout(400)
@pytest.mark.row("F12", "F25", "F28", "F36")
def test_no_invariant_breaks_while_everything_is_killed_in_turn(tmp_path: Path) -> None:
    report = audit.run(
        SEED,
        LOAD_SECONDS,
        data_dir=tmp_path / "mesh",
        kill_pause_seconds=KILL_PAUSE_SECONDS,
        lost_seconds=LOST_SECONDS,
    )
    print(report.as_text())
    assert report.is_clean, report.as_text()
    assert sum(report.kills.values()) >= LEAST_KILLS, report.as_text()
    checked = {found.name: found.checked for found in report.findings}
    assert min(checked["I1"], checked["I2"], checked["I10"]) > 20 and checked["I3"] > 0, report.as_text()


EXACT = (12, 3, 0, 0, 0, 0, 70)
PART = (12, 3, 0, 0, 0, 0, 40)


def sound_books() -> Books:
    """Three calls: one whole, one whose client left, one that was refused."""
    served = [
        Served("chaos/000000", "x1", True, 50, 70, (12, 3, 70)),
        Served("chaos/000001", "x2", True, 50, 52, None),
    ]
    seen = [
        Seen("chaos/000000", "acct_a", "A", True, "", "req_0", 200, "whole", 70, 1, True),
        Seen("chaos/000001", "acct_a", "C", True, "instant", "req_1", 200, "left", 40, 1),
        Seen("chaos/000002", "acct_a", "R", True, "", "req_2", 503, "refused"),
    ]
    sources = (usage_pb2.TOKEN_SOURCE_PROVIDER, usage_pb2.TOKEN_SOURCE_ESTIMATED)
    rows = [("req_0", EXACT), ("req_1", PART)]
    booked = [
        Booked(name, "acct_a", price_of(tokens), source, tokens)
        for (name, tokens), source in zip(rows, sources, strict=True)
    ]
    logged = [Logged(row.request_id, "acct_a", "COMPLETE", row.cost_nano_usd, row.tokens) for row in booked]
    logged.append(Logged("req_2", "acct_a", "REFUSED", 0, (0,) * 7))
    events = {
        f"req_{number}": UsageEvent(request_id=f"req_{number}", user_agent=f"chaos/{number:06}")
        for number in range(3)
    }
    events["req_0"].upstream_request_id = "msg_x1"
    events["req_2"].terminal = usage_pb2.TERMINAL_REFUSED
    cost = sum(row.cost_nano_usd for row in booked)
    moved = {"acct_a": 100 - cost, "house:cash": -100, "house:usage": cost}
    bank = Bank(dict(moved), {"acct_a": cost}, moved, {"acct_a": cost}, 1)
    exported = {row.request_id: [(row.account_id, row.cost_nano_usd)] for row in booked}
    return Books(served, seen, events, [], booked, logged, exported, bank)


def changed(rows: list[Any], position: int, **fields: Any) -> None:
    """Puts another row in the place of one."""
    rows[position] = dataclasses.replace(rows[position], **fields)


def forget_booking(books: Books) -> None:
    del books.booked[0]


def double_request(books: Books) -> None:
    books.events["req_9"] = UsageEvent(request_id="req_9", user_agent="chaos/000000")
    books.booked.append(dataclasses.replace(books.booked[0], request_id="req_9"))


def charge_unserved(books: Books) -> None:
    del books.served[1]


def move_money(books: Books) -> None:
    books.bank.balances["acct_a"] += 1


BREAKS: list[tuple[str, Callable[[Books], Any]]] = [
    ("I1", forget_booking),
    ("I1", double_request),
    ("I2", lambda books: changed(books.booked, 0, tokens=(12, 3, 0, 0, 0, 0, 69))),
    ("I2", lambda books: changed(books.booked, 1, cost_nano_usd=books.booked[1].cost_nano_usd - 1)),
    ("I3", lambda books: changed(books.booked, 1, tokens=(12, 3, 0, 0, 0, 0, 53))),
    ("I3", lambda books: changed(books.booked, 1, tokens=(12, 3, 0, 0, 0, 0, 20))),
    ("I4", lambda books: books.booked.append(books.booked[0])),
    ("I4", lambda books: books.bank.letters.append("conflict req_0")),
    ("I5", move_money),
    ("I5", lambda books: books.bank.used.update(acct_a=0)),
    ("I6", move_money),
    ("I7", lambda books: books.logged.pop(0)),
    ("I7", lambda books: books.logged.append(books.logged[0])),
    ("I7", lambda books: changed(books.logged, 0, cost_nano_usd=1)),
    ("I7", lambda books: changed(books.logged, 2, terminal="COMPLETE")),
    ("I8", lambda books: books.unsent.append("req_0")),
    ("I8", forget_booking),
    ("I8", lambda books: books.events.pop("req_0")),
    ("I9", lambda books: books.bank.old_holds.append("lease_1")),
    ("I10", lambda books: changed(books.booked, 0, token_source=usage_pb2.TOKEN_SOURCE_ESTIMATED)),
    ("I10", forget_booking),
    ("I11", lambda books: changed(cast(list[Any], books.seen), 1, begin_count=2)),
    ("I12", charge_unserved),
    ("I13", lambda books: books.exported.pop("req_0")),
    ("I13", lambda books: books.exported["req_0"].append(books.exported["req_0"][0])),
    ("I13", lambda books: books.exported.update(req_0=[("acct_b", books.booked[0].cost_nano_usd)])),
    ("I13", lambda books: books.exported.update(req_9=[("acct_a", 1)])),
]


def test_sound_books_break_nothing() -> None:
    found = {finding.name: finding for finding in examine(sound_books())}
    assert list(found) == list(INVARIANTS)
    assert not any(finding.broken for finding in found.values()), found


@pytest.mark.parametrize(("name", "spoil"), BREAKS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(BREAKS)])
def test_what_is_wrong_breaks_its_invariant(name: str, spoil: Callable[[Books], Any]) -> None:
    books = copy.deepcopy(sound_books())
    spoil(books)
    assert name in {finding.name for finding in examine(books) if finding.broken}


class Elsewhere:
    """A mesh whose list of processes names a process of somebody else."""

    def __init__(self, pid: int, supervisor: "subprocess.Popen[bytes] | None") -> None:
        self.process = supervisor
        self._pid = pid

    def run(self) -> dict[str, Any]:
        return {"processes": [{"name": name, "pid": self._pid, "state": "ready"} for name in COMMANDS]}


def test_nobody_else_is_killed() -> None:
    """A pid that is another's by now: not of this mesh, or of it and not what it is taken for."""
    waits = [sys.executable, "-c", "input()", "lurus_switch.targets gateway"]
    outer = f"import subprocess, sys; subprocess.run({[sys.executable, '-c', 'input()']!r})"
    stranger = subprocess.Popen(waits, stdin=subprocess.PIPE)
    parent = subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE)
    try:
        for supervisor, pid in ((parent, stranger.pid), (parent, parent.pid), (None, stranger.pid)):
            killer = Killer(cast(Mesh, Elsewhere(pid, supervisor)), 1, 0.0)
            assert not any(killer.kill(name) for name in COMMANDS)
            assert killer.count == 0 and killer.misses.total() == len(COMMANDS)
        assert stranger.poll() is None and parent.poll() is None
    finally:
        for process in (stranger, parent):
            process.communicate(b"\n")
