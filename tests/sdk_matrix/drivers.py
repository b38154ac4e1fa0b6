"""Runs the clients of the matrix: one process a group plays all its cells, while the tests begin."""

import json
import subprocess
from typing import Any

from tests.sdk_matrix import facts, python_sdks
from tests.sdk_matrix.clients import CLIENTS, Client, command_of, missing
from tests.sdk_matrix.gateway import DIALECTS, Matrix, model_of
from tests.sdk_matrix.scenarios import SCENARIOS, Result

PROCESS_SECONDS = 90.0
STOP_SECONDS = 5.0


class Drivers:
    """The processes; those of groups that are wanted start at once."""

    def __init__(self, matrix: Matrix, groups: set[str]) -> None:
        self._matrix = matrix
        self._processes = {
            group: _start(matrix, group) for group in sorted(groups) if group != "py" and not missing(group)
        }
        self._results: dict[str, dict[str, Result]] = {}

    def result_of(self, client: Client, dialect: str, scenario: str) -> Result:
        """Returns what a client saw of a scenario."""
        if client.group == "py":
            model = model_of(dialect, scenario, client.name)
            mesh = self._matrix.mesh
            return python_sdks.run(client.name, scenario, mesh.base_url, mesh.key, model)
        if client.group not in self._results:
            self._results[client.group] = _finish(client.group, self._processes[client.group])
        return self._results[client.group][model_of(dialect, scenario, client.name)]

    def stop(self) -> None:
        """Ends what still runs."""
        for process in self._processes.values():
            process.kill()
            process.communicate(timeout=STOP_SECONDS)


def _start(matrix: Matrix, group: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        command_of(group),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(_task(matrix, group)))
    process.stdin.close()
    # So that `communicate` leaves it alone.
    process.stdin = None
    return process


def _task(matrix: Matrix, group: str) -> dict[str, Any]:
    models = {
        model_of(dialect, scenario, client.name): (client.name, scenario)
        for client in CLIENTS.values()
        for dialect in DIALECTS
        for scenario in SCENARIOS
        if client.group == group
    }
    jobs = [
        {"id": model, "model": model, "client": client, "scenario": scenario}
        for model, (client, scenario) in models.items()
    ]
    return {
        "base_url": matrix.mesh.base_url,
        "key": matrix.mesh.key,
        "facts": facts.FOR_DRIVERS,
        "jobs": jobs,
    }


def _finish(group: str, process: "subprocess.Popen[str]") -> dict[str, Result]:
    output, errors = process.communicate(timeout=PROCESS_SECONDS)
    assert process.returncode == 0, f"the driver of {group} ends with {process.returncode}: {errors[-3000:]}"
    results: dict[str, Result] = json.loads(output)
    return results
