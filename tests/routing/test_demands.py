"""What a key demands of those who answer it: tags and highest prices."""

import msgspec
import pytest

from lurus.billing.v1 import billing_pb2
from lurus.provider.v1 import provider_pb2
from lurus.routing.v1 import routing_pb2
from lurus_common.errors import ModelForbidden
from tests.support.scripted_upstream import Exchange, plain

from .rig import (
    ADMIN_TOKEN,
    ALL_DIALECTS,
    ANTHROPIC,
    PRICE,
    DialectValue,
    MakeRig,
    Rig,
    plain_answer,
    plain_request,
    refusal,
)

pytestmark = pytest.mark.anyio
TIERED = provider_pb2.Price()
TIERED.CopyFrom(PRICE)
TIERED.tiers.add(above_input_tokens=100, input_nano_usd=2 * 10**9, output_nano_usd=PRICE.output_nano_usd)


def answering(rig: Rig) -> Rig:
    """Returns a rig whose providers answer."""
    rig.upstream.script = rig.other.script = plain(plain_answer(ANTHROPIC))
    return rig


def demand(rig: Rig, **demands: object) -> billing_pb2.KeyGrant:
    """Gives the rig a key that demands something; returns its grant."""
    rig.key = rig.billing.add_key(demands=billing_pb2.Demands(**demands))  # type: ignore[arg-type]
    return rig.billing.grant_of(rig.key)


async def explained(rig: Rig, key_id: str) -> dict[str, str]:
    """Why each provider is skipped; empty for those who are asked."""
    request = routing_pb2.ExplainRouteRequest(model="m-1", key_id=key_id)
    found = await rig.stub.ExplainRoute(request, metadata=(("authorization", f"Bearer {ADMIN_TOKEN}"),))
    return {row.provider_id: row.skip_reason for row in found.candidates}


class TestTags:
    async def test_only_those_who_carry_all_are_asked_even_in_failover(self, make_rig: MakeRig) -> None:
        providers = {"one": {"tags": ["eu", "zdr"], "level": 2}, "two": {"tags": ["eu"], "level": 1}}
        rig = answering(await make_rig(providers))
        grant = demand(rig, required_tags=["eu", "zdr"])
        answer = await rig.relay()
        assert answer.head.status == 200
        assert (len(rig.upstream.requests), len(rig.other.requests)) == (1, 0)
        reason = "lacks the tag 'zdr' that the key demands"
        assert await explained(rig, grant.key_id) == {"one": "", "two": reason}
        stored = msgspec.json.decode((await rig.event(answer.request_id)).decision)["candidates"]
        assert [(row["providerId"], row.get("skipReason", "")) for row in stored] == [
            ("one", ""),
            ("two", reason),
        ]

        async def fail(exchange: Exchange) -> None:
            await plain(b"{}", status=500)(exchange)

        rig.upstream.script = fail
        await rig.relay()
        assert rig.other.requests == []

    @pytest.mark.parametrize("dialect", ALL_DIALECTS)
    async def test_nobody_is_a_plain_refusal_before_any_call(self, rig: Rig, dialect: DialectValue) -> None:
        demand(rig, required_tags=["nobody has it"])
        error = await refusal(rig.relay(plain_request(dialect), dialect))
        assert isinstance(error, ModelForbidden)
        assert "lacks the tag 'nobody has it'" in error.message
        assert error.metadata["model"] == "m-1"
        event = await rig.event(error.metadata["request_id"])
        assert event.http_status == (403 if dialect == ANTHROPIC else 404)
        assert b"nobody has it" in event.decision
        assert rig.upstream.requests == rig.other.requests == []


class TestPrices:
    @pytest.mark.parametrize(
        ("price", "account_ppm", "cap", "is_asked"),
        [
            (PRICE, 0, 10**9, True),
            (PRICE, 0, 10**9 - 1, False),
            (PRICE, 1_500_000, 1_500_000_000, True),
            (PRICE, 1_500_000, 1_499_999_999, False),
            (TIERED, 0, 2 * 10**9, True),
            (TIERED, 0, 2 * 10**9 - 1, False),
            (None, 0, 10**12, False),
        ],
    )
    async def test_what_the_account_would_be_charged_counts(
        self,
        make_rig: MakeRig,
        price: provider_pb2.Price | None,
        account_ppm: int,
        cap: int,
        is_asked: bool,
    ) -> None:
        rig = answering(await make_rig(prices=[price] if price is not None else []))
        demands = billing_pb2.Demands(max_input_nano_usd=cap)
        rig.key = rig.billing.add_key(price_multiplier_ppm=account_ppm, demands=demands)
        if is_asked:
            assert (await rig.relay()).head.status == 200
        else:
            error = await refusal(rig.relay())
            assert isinstance(error, ModelForbidden)
            assert ("has no price" if price is None else "price of input above") in error.message
            assert rig.upstream.requests == []
