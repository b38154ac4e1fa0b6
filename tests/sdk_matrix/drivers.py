"""Runs the clients of the matrix."""

from tests.sdk_matrix import python_sdks
from tests.sdk_matrix.clients import Client
from tests.sdk_matrix.gateway import Matrix, model_of
from tests.sdk_matrix.scenarios import Result


def result_of(matrix: Matrix, client: Client, dialect: str, scenario: str) -> Result:
    """Returns what a client saw of a scenario."""
    model = model_of(dialect, scenario, client.name)
    return python_sdks.run(client.name, scenario, matrix.mesh.base_url, matrix.mesh.key, model)
