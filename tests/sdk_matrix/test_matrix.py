"""Every official SDK in its own words against providers of all three dialects."""

import pytest
from tests.sdk_matrix import drivers, scenarios
from tests.sdk_matrix.clients import CLIENTS, Client
from tests.sdk_matrix.gateway import Matrix, upstream_model_of


@pytest.mark.parametrize("scenario", scenarios.SCENARIOS)
@pytest.mark.parametrize("dialect", ["A", "C", "R"])
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_cell(matrix: Matrix, client: Client, dialect: str, scenario: str) -> None:
    result = drivers.result_of(matrix, client, dialect, scenario)
    records = matrix.provider.records[dialect, upstream_model_of(scenario, client.name)]
    scenarios.check(scenario, result, records, dialect, client.dialect == dialect)
    if scenario.startswith("thinking") and client.returns_thinking and dialect != "C":
        scenarios.check_thinking(records, dialect)
