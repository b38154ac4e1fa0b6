"""Breaks the product on purpose, by one patch at a time in a copy of the tree, and sees which test notices.

    python -m tests.chaos.mutants                 all of them; ends with 1 if one is not caught
    python -m tests.chaos.mutants --only memory   those whose name has this in it
    python -m tests.chaos.mutants --list

A mutant is caught if its test runs and fails on it, and passes without it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("services", "edge", "gen", "proto", "tests", "pyproject.toml", "README.md")
LEFT_OUT = ("__pycache__", "node_modules", ".venv", ".hypothesis")
TEST_SECONDS = 420.0
# Of pytest: tests ran, and some failed. Anything else is no verdict, a patch that does not compile for one.
FAILED = 1
PASSED = 0
AUDIT = "tests/chaos/test_audit.py::test_no_invariant_breaks_while_everything_is_killed_in_turn"


@dataclass(frozen=True, slots=True)
class Patch:
    """A piece of a file that stands there once, and what takes its place."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A defect, and the test that notices it."""

    name: str
    patches: tuple[Patch, ...]
    test: str


_BILLING, _ROUTING = "services/lurus_billing", "services/lurus_routing"
_SCHEMA = f"{_BILLING}/migrations/0001_accounts_keys_ledger_leases.sql"
_RESERVATIONS = f"{_BILLING}/migrations/0002_reservations_receipts_letters.sql"
_CONSUMER = "services/lurus_common/consumer.py"
_NO_KEY = (
    Patch(_SCHEMA, 'transaction_id text COLLATE "C" PRIMARY KEY', 'transaction_id text COLLATE "C" NOT NULL'),
    Patch(_RESERVATIONS, 'COLLATE "C" REFERENCES transfer;', 'COLLATE "C";'),
)
_NO_LOOK = Patch(
    f"{_BILLING}/booking.py",
    'return ledger.sort(entries, {row["transaction_id"]: row["body_sha"] for row in rows})',
    "return ledger.sort(entries, {row['transaction_id']: row['body_sha'] for row in rows[:0]})",
)
_ACK_FIRST = (
    Patch(
        _CONSUMER,
        "        try:\n            await self._handle([delivery.event for delivery in deliveries])",
        "        for delivery in deliveries:\n            await delivery.message.ack()\n"
        "        try:\n            await self._handle([delivery.event for delivery in deliveries])",
    ),
    Patch(
        _CONSUMER,
        "            return\n        for delivery in deliveries:\n            await delivery.message.ack()\n"
        "        self._consumed",
        "            return\n        self._consumed",
    ),
)
_IN_MEMORY = (
    Patch(
        f"{_ROUTING}/outbox_file.py", "sqlite3.connect(path, timeout", 'sqlite3.connect(":memory:", timeout'
    ),
)
_FREE_DEPARTURE = (
    Patch(
        f"{_ROUTING}/charge.py",
        "    if answer is None or (terminal in _FAILED and not answer.content_seen):",
        "    if terminal == usage_pb2.TERMINAL_CLIENT_GONE:\n        return NOTHING\n"
        "    if answer is None or (terminal in _FAILED and not answer.content_seen):",
    ),
)
_CLIENT_ID = (
    Patch(
        "services/lurus_common/bus.py",
        'headers={"Nats-Msg-Id": request_id}',
        'headers={"Nats-Msg-Id": UsageEvent.FromString(payload).session_id or request_id}',
    ),
)
_GLUED = (
    Patch(
        f"{_ROUTING}/relay.py",
        "                    yield RelayResponse(data=released)\n"
        "            yield RelayResponse(end=call.end())",
        "                    yield RelayResponse(data=released)\n"
        "                if call.terminal == usage_pb2.TERMINAL_TRUNCATED and call.peeked is not None:\n"
        "                    call.settled = None\n"
        "                    call.close_upstream()\n"
        "                    again = await self._attempts.answer(\n"
        "                        call, Outgoing(call, call.peeked, self._settings, typed)\n"
        "                    )\n"
        "                    yield RelayResponse(data=again.body)\n"
        "            yield RelayResponse(end=call.end())",
    ),
)
_LATE_FINAL = (
    Patch(
        f"{_ROUTING}/release.py",
        "            self._note_end()\n            await self._settlement.settle_durably(call)",
        "            self._note_end()",
    ),
)

MUTANTS = (
    Mutant(
        "the ledger has no unique key",
        _NO_KEY,
        "tests/billing/test_store.py::TestMove::"
        "test_one_id_at_once_on_accounts_with_nothing_in_common_books_once",
    ),
    Mutant(
        "the ledger has no unique key and does not look for repeats",
        (*_NO_KEY, _NO_LOOK),
        "tests/billing/test_store.py::TestSettle::test_the_same_event_five_times_debits_once",
    ),
    Mutant(
        "no unique key, no look, and a billing that dies before the ack",
        (*_NO_KEY, _NO_LOOK),
        "tests/billing/test_consumer.py::test_killed_between_commit_and_ack_it_debits_once",
    ),
    Mutant(
        "ack before commit",
        _ACK_FIRST,
        "tests/common/test_consumer.py::TestFailure::test_while_the_store_is_away_nothing_is_lost",
    ),
    Mutant("ack before commit, in a mesh", _ACK_FIRST, AUDIT),
    Mutant(
        "outbox in memory",
        _IN_MEMORY,
        "tests/routing/test_outbox.py::TestDeadWorkers::test_its_intents_become_estimated_events",
    ),
    Mutant("outbox in memory, in a mesh", _IN_MEMORY, AUDIT),
    Mutant(
        "the terminal event before the final row",
        _LATE_FINAL,
        "tests/routing/test_relay.py::TestAnswers::test_the_usage_row_is_durable_before_the_terminal_event",
    ),
    Mutant(
        "a settlement is refused when its hold has expired",
        (
            Patch(
                f"{_BILLING}/reservation_store.py",
                '                now = await connection.fetchval("SELECT clock_timestamp()")\n'
                "                entry = ledger.reservation_entry",
                '                now = await connection.fetchval("SELECT clock_timestamp()")\n'
                '                if row["expire_time"] <= now:\n'
                '                    raise FailedPrecondition("the hold has expired")\n'
                "                entry = ledger.reservation_entry",
            ),
        ),
        "tests/billing/test_reservation_store.py",
    ),
    Mutant("Nats-Msg-Id from a header of the client", _CLIENT_ID, AUDIT),
    Mutant(
        "who hangs up gets the money back",
        _FREE_DEPARTURE,
        "tests/routing/test_departure.py::TestLeaving::test_amid_the_content",
    ),
    Mutant("who hangs up gets the money back, in a mesh", _FREE_DEPARTURE, AUDIT),
    Mutant(
        "failover after content",
        _GLUED,
        "tests/routing/test_failover.py::TestAfterTheFirstEvent::test_a_cut_stream_ends_with_an_error",
    ),
    Mutant(
        "statistics add up raw rows, as an additive view does",
        (
            Patch(
                "services/lurus_log/queries.py",
                '_FROM = "FROM usage_events FINAL PREWHERE"',
                '_FROM = "FROM usage_events PREWHERE"',
            ),
        ),
        "tests/log/test_store.py::TestStatistics::test_each_grouping_is_exact",
    ),
    Mutant(
        "float in the money path",
        (
            Patch(
                "services/lurus_common/money.py",
                "    return -(-scaled // divisor)",
                "    return int(-(-scaled / divisor // 1))",
            ),
        ),
        "tests/common/test_money.py",
    ),
)


def apply(root: Path, patches: Sequence[Patch]) -> None:
    """Puts patches into a tree.

    Raises:
        ValueError: what a patch replaces does not stand there once.
    """
    for patch in patches:
        path = root / patch.path
        text = path.read_text()
        if text.count(patch.old) != 1:
            raise ValueError(f"{patch.path}: {text.count(patch.old)} times {patch.old!r}")
        path.write_text(text.replace(patch.old, patch.new))


@contextmanager
def copied_tree() -> Iterator[Path]:
    """Copies what the tests need, without what is installed beside it."""
    with tempfile.TemporaryDirectory(prefix="lurus-mutant-") as directory:
        root = Path(directory)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, root / part, ignore=shutil.ignore_patterns(*LEFT_OUT))
            else:
                shutil.copy(source, root / part)
        yield root


def run_test(root: Path, test: str) -> tuple[int, str]:
    """Runs a test in a tree; returns pytest's exit code and the line of its first failure."""
    paths = [str(root / name) for name in ("services", "edge", "gen")]
    # Bytecode is told apart by seconds and sizes: that of another mutant could be taken for this one's.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:xdist", test]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=TEST_SECONDS, check=False
    )
    failures = re.findall(r"^E  +(\S.*)$", done.stdout, re.MULTILINE)
    # Of an audit, the first invariant that is broken tells more than the first line of its table.
    told = [line for line in failures if " FAIL" in line] or failures
    return done.returncode, told[0][:160] if told else ""


def verdict(mutant: Mutant) -> tuple[bool, str]:
    """Whether a mutant is caught, and by what failure."""
    with copied_tree() as root:
        if (code := run_test(root, mutant.test)[0]) != PASSED:
            return False, f"the test does not pass without it (pytest ended with {code})"
        apply(root, mutant.patches)
        code, failure = run_test(root, mutant.test)
    if code == FAILED:
        return True, failure
    return False, "the test passes on it" if code == PASSED else f"no verdict: pytest ended with {code}"


def main() -> int:
    """Tries the mutants that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in mutant.name]
    missed = 0
    for mutant in chosen:
        if arguments.list:
            sys.stdout.write(f"{mutant.name}\n    {mutant.test}\n")
            continue
        is_caught, why = verdict(mutant)
        missed += not is_caught
        sys.stdout.write(
            f"{'caught' if is_caught else 'MISSED'}  {mutant.name}\n        {mutant.test}\n        {why}\n"
        )
        sys.stdout.flush()
    return int(missed > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main())
