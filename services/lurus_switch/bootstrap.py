"""Makes what a newcomer needs for a first request: an account with play money, a key, the sandbox.

`lurus up` runs this as a process of its own, at every start: it changes nothing
that is there. The key's secret is written to the data directory, since the
service shows it once.
"""

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

from lurus.billing.v1 import billing_pb2
from lurus.billing.v1.billing_pb2_grpc import BillingServiceStub
from lurus.provider.v1 import provider_pb2
from lurus.provider.v1.provider_pb2_grpc import ProviderServiceStub
from lurus.routing.v1 import routing_pb2
from lurus.routing.v1.routing_pb2_grpc import RoutingServiceStub
from lurus.usage.v1 import usage_pb2
from lurus_common.errors import AlreadyExists, NotFound
from lurus_common.money import NANO_USD_PER_USD
from lurus_common.rpc import error_of, open_channel
from lurus_common.secrets import is_api_key, key_verifier
from lurus_common.settings import Settings, SettingsError, read_settings
from lurus_switch.connect import DEFAULT_MODEL
from lurus_switch.embedded.data_dir import write_private
from lurus_switch.places import FIRST_KEY_FILE

if TYPE_CHECKING:
    from lurus.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub
    from lurus.provider.v1.provider_pb2_grpc import ProviderServiceAsyncStub
    from lurus.routing.v1.routing_pb2_grpc import RoutingServiceAsyncStub

ACCOUNT_ID = "acct_default"
PROVIDER_ID = "sandbox"
TRANSACTION_ID = "tx_welcome"
PLAY_MONEY_NANO_USD = 100 * NANO_USD_PER_USD
# Not a secret: the sandbox takes any key.
SANDBOX_SECRET = "sandbox-takes-any-key"  # noqa: S105
# Only its own models: a real provider that fails must never fail over to fixed words.
SANDBOX_MODELS = "sandbox-*"
SANDBOX_LEVEL = 10
WAIT_SECONDS = 90.0
# The mesh starts without it, if need be: another key may do.
GATEWAY_WAIT_SECONDS = 10.0
GATEWAY_POLL_SECONDS = 0.05


async def bootstrap(settings: Settings) -> None:
    """Makes account, money, key and sandbox, if they are missing; waits for the services.

    Raises:
        grpc.aio.AioRpcError: if a service refuses, or does not answer for 90 s.
    """
    async with (
        open_channel(settings.billing_address, settings.admin_token) as billing_channel,
        open_channel(settings.provider_address, settings.admin_token) as provider_channel,
    ):
        billing: BillingServiceAsyncStub = BillingServiceStub(billing_channel)
        provider: ProviderServiceAsyncStub = ProviderServiceStub(provider_channel)
        await asyncio.gather(
            _make_account_and_key(billing, settings),
            register_sandbox(provider, f"http://127.0.0.1:{settings.sandbox_port}"),
        )


async def _make_account_and_key(billing: "BillingServiceAsyncStub", settings: Settings) -> None:
    await make_account(billing)
    await make_first_key(billing, settings.key_pepper, Path(settings.data_dir) / FIRST_KEY_FILE)


async def make_account(billing: "BillingServiceAsyncStub") -> None:
    """Makes the account, unless there is one of that id, and gives it its money, once in its life."""
    account = billing_pb2.Account(account_id=ACCOUNT_ID, display_name="Default")
    try:
        await billing.CreateAccount(
            billing_pb2.CreateAccountRequest(account=account), wait_for_ready=True, timeout=WAIT_SECONDS
        )
    except grpc.aio.AioRpcError as error:
        if not isinstance(error_of(error), AlreadyExists):
            raise
    await billing.CreateTransaction(
        billing_pb2.CreateTransactionRequest(
            transaction_id=TRANSACTION_ID,
            account_id=ACCOUNT_ID,
            kind=billing_pb2.TRANSACTION_KIND_TOP_UP,
            amount_nano_usd=PLAY_MONEY_NANO_USD,
            description="Play money of `lurus up`",
        )
    )


async def make_first_key(billing: "BillingServiceAsyncStub", pepper: str, path: Path) -> None:
    """Leaves a live key in the file `path`: the one that is there, else a new one."""
    if await _is_live(billing, pepper, _text_of(path)):
        return
    key = billing_pb2.Key(account_id=ACCOUNT_ID, display_name="first key")
    created = await billing.CreateKey(billing_pb2.CreateKeyRequest(key=key))
    write_private(path, f"{created.secret}\n")


def _text_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


async def _is_live(billing: "BillingServiceAsyncStub", pepper: str, secret: str) -> bool:
    if not is_api_key(secret):
        return False
    try:
        found = await billing.LookupKey(billing_pb2.LookupKeyRequest(verifier=key_verifier(pepper, secret)))
    except grpc.aio.AioRpcError as error:
        if isinstance(error_of(error), NotFound):
            return False
        raise
    return not found.grant.is_revoked


async def register_sandbox(provider: "ProviderServiceAsyncStub", base_url: str) -> None:
    """Registers the sandbox; of one that is there, changes the address only, if that is another one."""
    sandbox = sandbox_provider(base_url)
    try:
        await provider.CreateProvider(
            provider_pb2.CreateProviderRequest(provider=sandbox), wait_for_ready=True, timeout=WAIT_SECONDS
        )
        return
    except grpc.aio.AioRpcError as error:
        if not isinstance(error_of(error), AlreadyExists):
            raise
    found = await provider.GetProvider(provider_pb2.GetProviderRequest(provider_id=PROVIDER_ID))
    if found.provider.base_url == base_url:
        return
    # Another origin needs the secrets again.
    change = provider_pb2.UpdateProviderRequest(
        provider=provider_pb2.Provider(
            provider_id=PROVIDER_ID, base_url=base_url, credentials=sandbox.credentials
        )
    )
    change.update_mask.paths.extend(["base_url", "credentials"])
    await provider.UpdateProvider(change)


def sandbox_provider(base_url: str) -> provider_pb2.Provider:
    """Returns the sandbox as a provider: last in every plan, in all dialects, for its own models."""
    return provider_pb2.Provider(
        provider_id=PROVIDER_ID,
        display_name="Sandbox (no model)",
        dialects=[
            usage_pb2.DIALECT_ANTHROPIC,
            usage_pb2.DIALECT_OPENAI_CHAT,
            usage_pb2.DIALECT_OPENAI_RESPONSES,
        ],
        base_url=base_url,
        credentials=[provider_pb2.Credential(credential_id="default", secret=SANDBOX_SECRET)],
        level=SANDBOX_LEVEL,
        supported_models=[SANDBOX_MODELS],
    )


async def _bootstrap_and_wait(settings: Settings) -> None:
    await bootstrap(settings)
    key = _text_of(Path(settings.data_dir) / FIRST_KEY_FILE)
    async with open_channel(settings.routing_address, settings.admin_token) as channel:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATEWAY_WAIT_SECONDS):
                await _wait_until_served(RoutingServiceStub(channel), key)


async def _wait_until_served(routing: "RoutingServiceAsyncStub", key: str) -> None:
    """Waits until the gateway has heard of the key and of the sandbox: a newcomer's first call must work."""
    while True:
        try:
            await routing.ListModels(routing_pb2.ListModelsRequest(credentials=[key]), wait_for_ready=True)
            found = await routing.ExplainRoute(routing_pb2.ExplainRouteRequest(model=DEFAULT_MODEL))
            if found.candidates:
                return
        except grpc.aio.AioRpcError:
            pass
        await asyncio.sleep(GATEWAY_POLL_SECONDS)


def main() -> int:
    """Bootstraps the mesh of the environment; returns the exit code."""
    try:
        asyncio.run(_bootstrap_and_wait(read_settings(os.environ)))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except grpc.aio.AioRpcError as error:
        found = error_of(error)
        print(f"{found.message} ({found.reason}) {found.metadata or ''}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
