"""Tells at the end of a run which cells of the matrix passed."""

import re
from collections.abc import Mapping

import pytest
from tests.sdk_matrix.clients import CLIENTS, TITLES
from tests.sdk_matrix.scenarios import SCENARIOS

NAMES = {"A": "Anthropic Messages", "C": "OpenAI Chat Completions", "R": "OpenAI Responses"}
_CELL = re.compile(
    r"tests/sdk_matrix/test_matrix\.py::test_cell\[(?P<client>\w+-\w+)-(?P<dialect>[ACR])-(?P<scenario>\w+)\]"
)
_MARKS = {"passed": "+", "skipped": ".", "failed": "X", "error": "X"}

Cells = dict[tuple[str, str, str], str]


def print_table(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table, if any cell was run."""
    cells = _cells(terminalreporter.stats)
    if not cells:
        return
    terminalreporter.section("clients x providers:  + passed   X failed   . skipped")
    for line in _lines(cells):
        terminalreporter.write_line(line)


def _cells(stats: Mapping[str, list[pytest.TestReport]]) -> Cells:
    cells: Cells = {}
    for outcome, mark in _MARKS.items():
        for report in stats.get(outcome, ()):
            if found := _CELL.search(report.nodeid):
                cells[found["client"], found["dialect"], found["scenario"]] = mark
    return cells


def _lines(cells: Cells) -> list[str]:
    widths = {scenario: len(scenario.replace("_streamed", "~")) for scenario in SCENARIOS}
    head = " ".join(scenario.replace("_streamed", "~") for scenario in SCENARIOS)
    lines = [f"{'client':<18}{'provider':<9}{head}      (~ streamed)"]
    for client in CLIENTS.values():
        for dialect in NAMES:
            marks = [cells.get((client.name, dialect, scenario), " ") for scenario in SCENARIOS]
            if not any(mark.strip() for mark in marks):
                continue
            row = " ".join(
                mark.center(widths[scenario]) for mark, scenario in zip(marks, SCENARIOS, strict=True)
            )
            arrow = f"{client.dialect}->{dialect}"
            lines.append(f"{client.name:<18}{arrow:<9}{row}")
    groups = ", ".join(f"{group} {title}" for group, title in TITLES.items())
    dialects = ", ".join(f"{letter} {name}" for letter, name in NAMES.items())
    return [*lines, f"{groups}; {dialects}"]
