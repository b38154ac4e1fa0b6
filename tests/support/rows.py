"""The rows of the two matrices: what fails (F1 to F46) and what is sent wrongly (B1 to B52).

A test stands for a row by its name (`test_f08_…` in `tests/fault_matrix/`, `test_b5_…` and ids such as
`B5-deep` in `tests/end_to_end/test_bad_*.py`) or, wherever it is, by a mark:

    @pytest.mark.row("F25")

At the end of a run a table tells of every row whether its tests passed, and of every other one why there
was none.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import pytest

PROPERTY = "row"
FAULTS = {
    "F1": "a provider refuses connections",
    "F2": "a provider swallows connections",
    "F3": "a provider fails with 500, 502, 503 or 529",
    "F4": "a provider throttles, others do not",
    "F5": "every provider throttles",
    "F6": "a provider refuses our key",
    "F7": "a provider fails every other time",
    "F8": "a provider dies amid the content",
    "F9": "a provider dies between head and first event",
    "F10": "a provider falls silent amid the content",
    "F11": "routing is frozen amid a stream",
    "F12": "routing is killed amid a stream",
    "F13": "a client leaves amid a stream",
    "F14": "a client leaves before the terminal event",
    "F15": "a client closes its writing side",
    "F16": "clients stop reading",
    "F17": "many idle streams",
    "F18": "the edge is stopped under load",
    "F19": "a stream outlives the drain",
    "F20": "the edge is killed amid a stream",
    "F21": "four times too much load",
    "F22": "large bodies and the event loop",
    "F23": "routing runs out of descriptors",
    "F24": "poison in the stream of usage",
    "F25": "NATS is killed under load",
    "F26": "NATS is away from the start",
    "F27": "NATS has no stream, or a full one",
    "F28": "PostgreSQL is killed under load",
    "F29": "PostgreSQL is frozen",
    "F30": "Redis is away or talks garbage",
    "F31": "everything behind routing is away, at a restart too",
    "F32": "the snapshot on disk is damaged",
    "F33": "a key is revoked while NATS is away",
    "F34": "ClickHouse is away and killed amid an insert",
    "F35": "clocks differ by five minutes",
    "F36": "billing is killed between commit and ack",
    "F37": "two billing consumers are given the same events",
    "F38": "an event is published twice, long apart",
    "F39": "one id, two different events",
    "F40": "a reservation expires before it is settled",
    "F41": "200 calls, money for ten",
    "F42": "the disk of the outbox is full or broken",
    "F43": "an outbox of a dead instance",
    "F44": "names: no address, another one, a loopback one",
    "F45": "a provider's certificate is expired or another's",
    "F46": "two versions at once",
}
BAD_INPUT = {
    "B1": "no JSON object",
    "B2": "broken JSON",
    "B3": "NaN and infinity",
    "B4": "no UTF-8",
    "B5": "deep nesting",
    "B6": "numbers too long",
    "B7": "limits on the output",
    "B8": "repeated keys",
    "B9": "names of models",
    "B10": "a model that the key may not use",
    "B11": "no messages",
    "B12": "unknown roles",
    "B13": "tool calls that do not fit",
    "B14": "images, and URLs in them",
    "B15": "a megabyte of NUL",
    "B16": "a length over the limit",
    "B17": "a body without end",
    "B18": "content types",
    "B19": "content encodings and bombs",
    "B20": "no key",
    "B21": "two keys",
    "B22": "dead keys",
    "B23": "forged JWTs",
    "B24": "SQL in every field",
    "B25": "queries of the log",
    "B26": "patterns in filters",
    "B27": "fields that name a server",
    "B28": "headers that claim an identity",
    "B29": "idempotency keys",
    "B30": "control characters in headers",
    "B31": "two lengths",
    "B32": "heads too large",
    "B33": "silence, and TLS on a plain port",
    "B34": "500 slow heads",
    "B35": "slow bodies",
    "B36": "pipelines and smuggling",
    "B37": "gRPC: what is none",
    "B38": "gRPC: messages and metadata too large",
    "B39": "HTTP/2: rapid reset",
    "B40": "HTTP/2: floods and bombs",
    "B41": "gRPC: invalid messages",
    "B42": "gRPC: deadlines",
    "B43": "provider: odd event streams",
    "B44": "provider: broken events and usage",
    "B45": "provider: 200 that is no answer",
    "B46": "provider: no usage",
    "B47": "provider: redirects, lengths, bombs, cookies",
    "B48": "operator: base URLs",
    "B49": "operator: prices, weights, mappings",
    "B50": "operator: imports",
    "B51": "webhooks",
    "B52": "methods and paths",
}
TABLES = {"fault matrix": FAULTS, "bad-input matrix": BAD_INPUT}
# What has no test because there is nothing to test yet.
LATER = {
    "B23": "no part of the product takes a JWT yet",
    "B50": "there is no import of other gateways' files yet",
    "B51": "there is no webhook yet",
}
_NAMED_FOLDERS = ("tests/fault_matrix/test_", "tests/end_to_end/test_bad_")
_NAME = re.compile(r"(?:^test_|(?<=\d)_|\[|-)([fFbB])0?(\d{1,2})(?=[_\-\]])")
_OUTCOMES = ("failed", "error", "skipped", "passed")


def note_rows(items: Iterable[pytest.Item]) -> None:
    """Gives every test the rows that it stands for, as properties, which reach the process that prints."""
    for item in items:
        for row in sorted(_rows(item)):
            if row not in FAULTS and row not in BAD_INPUT:
                raise pytest.UsageError(f"{item.nodeid} stands for {row}, which is no row")
            item.user_properties.append((PROPERTY, row))


def _rows(item: pytest.Item) -> set[str]:
    rows = {row for mark in item.iter_markers("row") for row in mark.args}
    if item.nodeid.startswith(_NAMED_FOLDERS):
        rows |= {letter.upper() + number for letter, number in _NAME.findall(item.name)}
    return rows


def print_tables(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints both tables, if any of their tests was run."""
    outcomes, reasons = _outcomes(terminalreporter.stats)
    for title, rows in TABLES.items():
        found = {row: outcomes[row] for row in rows if row in outcomes}
        if not found:
            continue
        terminalreporter.section(title)
        for row, words in found.items():
            counted = f"{len(words)} test{'s'[: len(words) != 1]}"
            line = f"  {row:4}{_verdict(set(words)):12} {counted:10} {rows[row]}"
            terminalreporter.write_line(line)
            for reason in sorted(reasons[row]):
                terminalreporter.write_line(f"        skipped: {reason}")
        terminalreporter.write_line(f"{len(found)} of {len(rows)} rows have a test in this run")
        for row in rows:
            if row not in found and row in LATER:
                terminalreporter.write_line(f"  {row:4}not run: {LATER[row]}")
        if missing := [row for row in rows if row not in found and row not in LATER]:
            terminalreporter.write_line(f"  no test in this run: {' '.join(missing)}")


def _outcomes(
    stats: Mapping[str, list[pytest.TestReport]],
) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    outcomes: dict[str, list[str]] = defaultdict(list)
    reasons: dict[str, set[str]] = defaultdict(set)
    for outcome in _OUTCOMES:
        for report in stats.get(outcome, ()):
            for name, row in getattr(report, "user_properties", ()):
                if name != PROPERTY:
                    continue
                outcomes[row].append(outcome)
                if outcome == "skipped" and isinstance(report.longrepr, tuple):
                    reasons[row].add(report.longrepr[2].removeprefix("Skipped: "))
    return outcomes, reasons


def _verdict(outcomes: set[str]) -> str:
    """The worst of the outcomes of a row's tests."""
    if outcomes & {"failed", "error"}:
        return "FAIL"
    if outcomes == {"skipped"}:
        return "not run"
    return "pass (part)" if "skipped" in outcomes else "pass"
