"""Tells at the end of a run which cases of the wire contract (E) passed, and which have no test."""

import re
from collections import defaultdict
from collections.abc import Mapping

import pytest

FOLDER = "tests/conformance/"
# How many cases each section of E has.
CASES = {"S": 20, "H": 27, "P": 15, "Q": 29, "Y": 26, "M": 14, "K": 10}
TITLES = {
    "S": "E.1 event streams",
    "H": "E.2 transport and headers",
    "P": "E.3 passthrough",
    "Q": "E.4 translated requests",
    "Y": "E.5 translated answers",
    "M": "E.6 metering",
    "K": "E.7 real clients",
}
_CASE = re.compile(r"test_([SHPQYMK]\d\d)(?=_|\b)")
_OUTCOMES = ("failed", "error", "skipped", "passed")


def print_table(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table, if any case was run."""
    outcomes, reasons = _outcomes(terminalreporter.stats)
    if not outcomes:
        return
    terminalreporter.section("wire contract, section E")
    for letter, count in CASES.items():
        ids = [f"{letter}{number:02}" for number in range(1, count + 1)]
        words = [f"{case} {_verdict(outcomes[case])}" for case in ids if case in outcomes]
        terminalreporter.write_line(
            f"{TITLES[letter]}: {len(words)} of {count} cases have a test in this run"
        )
        for start in range(0, len(words), 8):
            terminalreporter.write_line("  " + "  ".join(word.ljust(11) for word in words[start : start + 8]))
        if missing := [case for case in ids if case not in outcomes]:
            terminalreporter.write_line(f"  no test: {' '.join(missing)}")
    for case in sorted(reasons):
        for reason in sorted(reasons[case]):
            terminalreporter.write_line(f"  {case} skipped: {reason}")


def _outcomes(
    stats: Mapping[str, list[pytest.TestReport]],
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    outcomes: dict[str, set[str]] = defaultdict(set)
    reasons: dict[str, set[str]] = defaultdict(set)
    for outcome in _OUTCOMES:
        for report in stats.get(outcome, ()):
            if not report.nodeid.startswith(FOLDER):
                continue
            for case in _CASE.findall(report.nodeid):
                outcomes[case].add(outcome)
                if outcome == "skipped" and isinstance(report.longrepr, tuple):
                    reasons[case].add(report.longrepr[2].removeprefix("Skipped: "))
    return outcomes, reasons


def _verdict(outcomes: set[str]) -> str:
    """The worst of the outcomes of a case's tests."""
    if outcomes & {"failed", "error"}:
        return "FAIL"
    if outcomes == {"skipped"}:
        return "skip"
    return "pass (part)" if "skipped" in outcomes else "pass"
