"""What `lurus up` makes at every start, and what it leaves alone."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.switch.scripted import TOKEN, ScriptedMesh, scripted_mesh

from lurus.billing.v1 import billing_pb2
from lurus.provider.v1 import provider_pb2
from lurus_common.errors import AlreadyExists, NotFound
from lurus_common.secrets import key_verifier, new_api_key
from lurus_common.settings import Settings
from lurus_switch.bootstrap import bootstrap

pytestmark = pytest.mark.anyio
PEPPER = "a pepper for tests"


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedMesh]:
    with scripted_mesh() as mesh:
        yield mesh


@pytest.fixture
async def mesh(running: ScriptedMesh) -> AsyncIterator[ScriptedMesh]:
    """A mesh that takes everything, and has made the account, the money and the sandbox before."""
    running.requests.clear()
    sandbox = provider_pb2.Provider(provider_id="sandbox", base_url="http://127.0.0.1:1", level=3)
    running.answers = {
        "CreateAccount": AlreadyExists("another name", resource="account", id="acct_default"),
        "CreateTransaction": billing_pb2.CreateTransactionResponse(),
        "CreateKey": billing_pb2.CreateKeyResponse(secret=new_api_key()),
        "LookupKey": NotFound("no such key", resource="key", id=""),
        "CreateProvider": AlreadyExists("another level", resource="provider", id="sandbox"),
        "GetProvider": provider_pb2.GetProviderResponse(provider=sandbox),
        "UpdateProvider": provider_pb2.UpdateProviderResponse(),
    }
    yield running


def settings(mesh: ScriptedMesh, data_dir: Path, sandbox_port: int = 1) -> Settings:
    return Settings(
        data_dir=str(data_dir),
        admin_token=TOKEN,
        key_pepper=PEPPER,
        sandbox_port=sandbox_port,
        billing_address=f"127.0.0.1:{mesh.ports['billing']}",
        provider_address=f"127.0.0.1:{mesh.ports['provider']}",
    )


def calls(mesh: ScriptedMesh) -> set[str]:
    return {type(request).__name__.removesuffix("Request") for request in mesh.requests}


async def test_the_first_key_is_kept_for_the_next_start(mesh: ScriptedMesh, tmp_path: Path) -> None:
    await bootstrap(settings(mesh, tmp_path))
    secret = (tmp_path / "first-key").read_text().strip()
    assert (tmp_path / "first-key").stat().st_mode & 0o777 == 0o600
    mesh.answers["LookupKey"] = billing_pb2.LookupKeyResponse()
    mesh.requests.clear()
    await bootstrap(settings(mesh, tmp_path))
    assert (tmp_path / "first-key").read_text().strip() == secret
    assert "CreateKey" not in calls(mesh)
    assert mesh.last(billing_pb2.LookupKeyRequest).verifier == key_verifier(PEPPER, secret)


async def test_a_revoked_key_is_replaced(mesh: ScriptedMesh, tmp_path: Path) -> None:
    revoked = billing_pb2.KeyGrant(is_revoked=True)
    mesh.answers["LookupKey"] = billing_pb2.LookupKeyResponse(grant=revoked)
    (tmp_path / "first-key").write_text(new_api_key())
    await bootstrap(settings(mesh, tmp_path))
    assert "CreateKey" in calls(mesh)


async def test_the_money_has_one_id_for_all_starts(mesh: ScriptedMesh, tmp_path: Path) -> None:
    await bootstrap(settings(mesh, tmp_path))
    sent = mesh.last(billing_pb2.CreateTransactionRequest)
    assert (sent.transaction_id, sent.amount_nano_usd) == ("tx_welcome", 100_000_000_000)


async def test_what_an_operator_made_of_the_sandbox_stays(mesh: ScriptedMesh, tmp_path: Path) -> None:
    await bootstrap(settings(mesh, tmp_path))
    assert "UpdateProvider" not in calls(mesh)


async def test_a_sandbox_that_has_moved_is_followed(mesh: ScriptedMesh, tmp_path: Path) -> None:
    await bootstrap(settings(mesh, tmp_path, sandbox_port=2))
    sent = mesh.last(provider_pb2.UpdateProviderRequest)
    assert sorted(sent.update_mask.paths) == ["base_url", "credentials"]
    assert sent.provider.base_url == "http://127.0.0.1:2"
    assert sent.provider.credentials[0].secret


async def test_the_sandbox_serves_its_own_models_only(mesh: ScriptedMesh, tmp_path: Path) -> None:
    mesh.answers["CreateProvider"] = provider_pb2.CreateProviderResponse()
    await bootstrap(settings(mesh, tmp_path))
    sent = mesh.last(provider_pb2.CreateProviderRequest).provider
    assert list(sent.supported_models) == ["sandbox-*"]
    assert (sent.level, len(sent.dialects)) == (10, 3)
