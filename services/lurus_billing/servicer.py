"""BillingService over gRPC."""

from collections.abc import AsyncIterator
from typing import Any

from lurus.billing.v1 import billing_pb2 as pb
from lurus.billing.v1.billing_pb2_grpc import BillingServiceServicer
from lurus_billing import account_store, dead_letters, key_store, leases, ledger, metrics
from lurus_billing.account_store import AccountStore
from lurus_billing.budget_store import BudgetStore
from lurus_billing.budget_watch import BudgetWatch
from lurus_billing.consumer import UsageBus
from lurus_billing.dead_letters import DeadLetterStore
from lurus_billing.key_store import KeyStore
from lurus_billing.key_watch import KeyWatch
from lurus_billing.lago import LagoClient, LagoRefused
from lurus_billing.masks import changed_fields
from lurus_billing.metrics import count_lease
from lurus_billing.price_lookup import PriceLookup
from lurus_billing.receipt_store import ReceiptStore
from lurus_billing.receipts import receipt
from lurus_billing.reconciler import Reconciler
from lurus_billing.repricing_store import RepricingStore, require_price
from lurus_billing.reservation_store import ReservationStore
from lurus_billing.store import LedgerStore
from lurus_common import secrets
from lurus_common.errors import FailedPrecondition, InvalidRequest
from lurus_common.ids import new_id

MAX_ALLOWED_MODELS_BYTES = 64 * 1024


class BillingServicer(BillingServiceServicer):
    """Message in, one call, message out.

    Args:
        pepper: under which keys are hashed.
    """

    def __init__(
        self,
        *,
        accounts: AccountStore,
        keys: KeyStore,
        ledger_store: LedgerStore,
        budgets: BudgetStore,
        reservations: ReservationStore,
        receipts: ReceiptStore,
        repricings: RepricingStore,
        prices: PriceLookup,
        letters: DeadLetterStore,
        key_watch: KeyWatch,
        budget_watch: BudgetWatch,
        usage: UsageBus,
        reconciler: Reconciler,
        pepper: str,
        lago: LagoClient | None = None,
    ) -> None:
        self._accounts = accounts
        self._keys = keys
        self._ledger = ledger_store
        self._budgets = budgets
        self._reservations = reservations
        self._receipts = receipts
        self._repricings = repricings
        self._prices = prices
        self._letters = letters
        self._key_watch = key_watch
        self._budget_watch = budget_watch
        self._usage = usage
        self._reconciler = reconciler
        self._pepper = pepper
        self._lago = lago

    async def GetAccount(self, request: pb.GetAccountRequest, context: Any) -> pb.GetAccountResponse:
        return pb.GetAccountResponse(account=await self._accounts.find(request.account_id))

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Any) -> pb.ListAccountsResponse:
        return await self._accounts.page(request)

    async def CreateAccount(self, request: pb.CreateAccountRequest, context: Any) -> pb.CreateAccountResponse:
        account = request.account
        _require_time_zone(account)
        account.account_id = account.account_id or new_id("acct")
        return pb.CreateAccountResponse(account=await self._accounts.create(account))

    async def UpdateAccount(self, request: pb.UpdateAccountRequest, context: Any) -> pb.UpdateAccountResponse:
        _require_time_zone(request.account)
        fields = changed_fields(request.account, request.update_mask, account_store.CHANGEABLE)
        return pb.UpdateAccountResponse(account=await self._accounts.update(request.account, fields))

    async def DeleteAccount(self, request: pb.DeleteAccountRequest, context: Any) -> pb.DeleteAccountResponse:
        closed = pb.Account(account_id=request.account_id, is_closed=True)
        await self._accounts.update(closed, ["is_closed"])
        return pb.DeleteAccountResponse()

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        key = request.key
        _require_short_list(key)
        key.key_id = key.key_id or new_id("key")
        secret = secrets.new_api_key()
        verifier = secrets.key_verifier(self._pepper, secret)
        created, is_new = await self._keys.create(key, verifier, secret[: key_store.SHOWN_CHARACTERS])
        return pb.CreateKeyResponse(key=created, secret=secret if is_new else "")

    async def GetKey(self, request: pb.GetKeyRequest, context: Any) -> pb.GetKeyResponse:
        return pb.GetKeyResponse(key=await self._keys.find(request.key_id))

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        return await self._keys.page(request)

    async def UpdateKey(self, request: pb.UpdateKeyRequest, context: Any) -> pb.UpdateKeyResponse:
        _require_short_list(request.key)
        fields = changed_fields(request.key, request.update_mask, key_store.CHANGEABLE)
        return pb.UpdateKeyResponse(key=await self._keys.update(request.key, fields))

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Any) -> pb.RevokeKeyResponse:
        return pb.RevokeKeyResponse(key=await self._keys.revoke(request.key_id))

    async def LookupKey(self, request: pb.LookupKeyRequest, context: Any) -> pb.LookupKeyResponse:
        return pb.LookupKeyResponse(grant=await self._keys.grant(request.verifier))

    async def WatchKeys(
        self, request: pb.WatchKeysRequest, context: Any
    ) -> AsyncIterator[pb.WatchKeysResponse]:
        async for response in self._key_watch.responses():
            yield response

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        return await self._budgets.balance(request.account_id)

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Any) -> pb.GetQuotaResponse:
        return await self._budgets.quota(request.account_id)

    async def UpdateQuota(self, request: pb.UpdateQuotaRequest, context: Any) -> pb.UpdateQuotaResponse:
        return pb.UpdateQuotaResponse(quota=await self._budgets.set_quota(request.account_id, request.quota))

    async def CreateTransaction(
        self, request: pb.CreateTransactionRequest, context: Any
    ) -> pb.CreateTransactionResponse:
        ledger.require_fitting_kind(request)
        return pb.CreateTransactionResponse(transaction=await self._ledger.move(request))

    async def ListTransactions(
        self, request: pb.ListTransactionsRequest, context: Any
    ) -> pb.ListTransactionsResponse:
        return await self._ledger.transactions(request)

    async def ReportUsage(self, request: pb.ReportUsageRequest, context: Any) -> pb.ReportUsageResponse:
        return pb.ReportUsageResponse(is_duplicate=await self._usage.publish(request.event))

    async def LeaseQuota(self, request: pb.LeaseQuotaRequest, context: Any) -> pb.LeaseQuotaResponse:
        lease = await self._budgets.lend(request)
        count_lease(lease)
        return lease

    async def CreateReservation(
        self, request: pb.CreateReservationRequest, context: Any
    ) -> pb.CreateReservationResponse:
        return await self._reservations.reserve(request)

    async def SettleReservation(
        self, request: pb.SettleReservationRequest, context: Any
    ) -> pb.SettleReservationResponse:
        booked, is_overdraft = await self._reservations.settle(request)
        metrics.OVERDRAFTS.inc(is_overdraft)
        return pb.SettleReservationResponse(transaction=booked)

    async def ReleaseReservation(
        self, request: pb.ReleaseReservationRequest, context: Any
    ) -> pb.ReleaseReservationResponse:
        await self._reservations.release(request.reservation_id)
        return pb.ReleaseReservationResponse()

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.GetReceiptResponse:
        booked = await self._receipts.find(request.request_id)
        price = await self._prices.find(booked.transaction.price_id)
        return receipt(booked.transaction, booked.event, price, booked.corrections)

    async def ListUnpricedModels(
        self, request: pb.ListUnpricedModelsRequest, context: Any
    ) -> pb.ListUnpricedModelsResponse:
        return await self._repricings.unpriced(request)

    async def RepriceUsage(self, request: pb.RepriceUsageRequest, context: Any) -> pb.RepriceUsageResponse:
        chosen = None
        if request.price_id:
            chosen = require_price(await self._prices.find(request.price_id), request.price_id)
        return await self._repricings.reprice(request, self._prices.of_model, chosen)

    async def WatchBudget(
        self, request: pb.WatchBudgetRequest, context: Any
    ) -> AsyncIterator[pb.WatchBudgetResponse]:
        async for response in self._budget_watch.responses(request.account_id):
            yield response

    async def Reconcile(self, request: pb.ReconcileRequest, context: Any) -> pb.ReconcileResponse:
        return await self._reconciler.answer(request)

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Any
    ) -> pb.ListDeadLettersResponse:
        return await self._letters.page(request)

    async def ReplayDeadLetter(
        self, request: pb.ReplayDeadLetterRequest, context: Any
    ) -> pb.ReplayDeadLetterResponse:
        letter = await self._letters.find(request.dead_letter_id)
        if not letter.HasField("resolve_time"):
            letter = await self._letters.resolve(letter.dead_letter_id, await self._replay(letter))
        return pb.ReplayDeadLetterResponse(dead_letter=letter)

    async def _replay(self, letter: pb.DeadLetter) -> str:
        """Does again what failed; returns what became of it."""
        if letter.cause != pb.DEAD_LETTER_CAUSE_EXPORT:
            await self._usage.replay(letter)
            return dead_letters.REPLAYED
        if self._lago is None:
            raise FailedPrecondition("no Lago is set", resource="dead_letter", id=letter.dead_letter_id)
        try:
            await self._lago.send([dead_letters.replayable(letter)])
        except LagoRefused as error:
            raise FailedPrecondition(
                f"Lago still refuses it: {error}", resource="dead_letter", id=letter.dead_letter_id
            ) from error
        return dead_letters.EXPORTED

    async def ResolveDeadLetter(
        self, request: pb.ResolveDeadLetterRequest, context: Any
    ) -> pb.ResolveDeadLetterResponse:
        letter = await self._letters.resolve(request.dead_letter_id, request.resolution)
        return pb.ResolveDeadLetterResponse(dead_letter=letter)


def _require_time_zone(account: pb.Account) -> None:
    if not leases.is_time_zone(account.time_zone):
        raise InvalidRequest("time_zone is not the IANA name of one", param="account.time_zone")


def _require_short_list(key: pb.Key) -> None:
    if sum(len(model.encode()) for model in key.allowed_models) > MAX_ALLOWED_MODELS_BYTES:
        raise InvalidRequest(
            "allowed_models is too long in all",
            param="key.allowed_models",
            maximum_bytes=MAX_ALLOWED_MODELS_BYTES,
        )
