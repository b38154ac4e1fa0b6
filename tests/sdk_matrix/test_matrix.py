"""Every official SDK in its own words against providers of all three dialects."""

import pytest
from tests.sdk_matrix import scenarios
from tests.sdk_matrix.clients import CLIENTS, Client, missing
from tests.sdk_matrix.drivers import Drivers
from tests.sdk_matrix.gateway import DIALECTS, Matrix, upstream_model_of


@pytest.mark.parametrize("scenario", scenarios.SCENARIOS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_cell(matrix: Matrix, drivers: Drivers, client: Client, dialect: str, scenario: str) -> None:
    if reason := missing(client.group):
        pytest.skip(reason)
    result = drivers.result_of(client, dialect, scenario)
    records = matrix.provider.records[dialect, upstream_model_of(scenario, client.name)]
    scenarios.check(scenario, result, records, dialect, client.dialect == dialect)
    if scenario.startswith("thinking") and client.returns_thinking and dialect != "C":
        scenarios.check_thinking(records, dialect)
