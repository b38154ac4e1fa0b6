"""One gateway with the scripted provider behind it, for all cells of the matrix."""

from dataclasses import dataclass

from tests.sdk_matrix.provider import SECRET, ScriptedProvider
from tests.sdk_matrix.scenarios import BENCHING
from tests.support.mesh import Mesh, eventually

DIALECTS = {"A": "DIALECT_ANTHROPIC", "C": "DIALECT_OPENAI_CHAT", "R": "DIALECT_OPENAI_RESPONSES"}
KNOWN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Matrix:
    """A running gateway, and the provider behind it."""

    mesh: Mesh
    provider: ScriptedProvider


def model_of(dialect: str, scenario: str, client: str) -> str:
    """Returns what a client asks for so that this scenario is played for it in this dialect."""
    if scenario in BENCHING:
        return f"{_bench_id(dialect, scenario, client)}/{scenario}/{client}"
    return f"matrix-{dialect.lower()}/{scenario}/{client}"


def upstream_model_of(scenario: str, client: str) -> str:
    """Returns the name under which the provider knows that."""
    return f"{scenario}/{client}"


def register(mesh: Mesh, url: str, clients: list[str]) -> None:
    """Registers the scripted provider, under many ids: one whose credential is refused is not asked again."""
    names = {f"matrix-{letter.lower()}": letter for letter in DIALECTS}
    for letter in DIALECTS:
        names |= {_bench_id(letter, scenario, client): letter for scenario in BENCHING for client in clients}
    providers = [
        {
            "provider_id": name,
            "dialects": [DIALECTS[letter]],
            "base_url": url,
            "credentials": [{"secret": SECRET}],
            "model_mappings": [{"model": f"{name}/*", "upstream_model": "*"}],
        }
        for name, letter in names.items()
    ]
    for provider in providers:
        mesh.rest("POST", "providers", json=provider)
    last = f"{providers[-1]['provider_id']}/x"
    eventually(lambda: mesh.rest("GET", f"routes:explain?model={last}").get("candidates"), KNOWN_SECONDS)


def _bench_id(dialect: str, scenario: str, client: str) -> str:
    return f"matrix-{dialect.lower()}-{scenario}-{client}"
