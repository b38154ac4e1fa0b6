"""What requests of both vendors cost, from the usage that they state to the nano-USD, reckoned by hand."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from lurus_common.money import PPM, Price, Rates, Tier, cost
from lurus_dialects.dialect import Dialect
from lurus_dialects.usage import UsageMeter

# USD per million: 3 in, 15 out, 0.30 read, 3.75 for 5 minutes, 6 for an hour; more above 200,000.
SONNET = Price(
    Rates(3 * 10**9, 3 * 10**8, 375 * 10**7, 375 * 10**7, 6 * 10**9, 6 * 10**9, 15 * 10**9),
    (
        Tier(
            200_000, Rates(6 * 10**9, 6 * 10**8, 75 * 10**8, 75 * 10**8, 12 * 10**9, 12 * 10**9, 225 * 10**8)
        ),
    ),
    {"web_search": 10 * 10**9, "web_fetch": 0},
)
# USD per million: 1.25 in, 10 out, 0.125 read, 1.5625 for 30 minutes, 3.125 for 12 hours; more above 272,000.
GPT = Price(
    Rates(125 * 10**7, 125 * 10**6, 15625 * 10**5, 15625 * 10**5, 3125 * 10**6, 3125 * 10**6, 10**10),
    (
        Tier(
            272_000,
            Rates(250 * 10**7, 250 * 10**6, 3125 * 10**6, 3125 * 10**6, 625 * 10**7, 625 * 10**7, 15 * 10**9),
        ),
    ),
    {"web_search": 10 * 10**9, "image_gen_output_tokens": 40 * 10**6},
)
# 0.000000001 USD per million: a millionth of a nano-USD for a token.
TINY = Price(Rates(1, 1, 1, 1, 1, 1, 1))
A, C, R = Dialect.ANTHROPIC, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES


def anthropic(
    fresh: int, out: int, read: int = 0, five: int = 0, hour: int = 0, **more: Any
) -> dict[str, Any]:
    """Usage as Anthropic states it: input without what the cache read or wrote."""
    split = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
    return {
        "input_tokens": fresh,
        "output_tokens": out,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": five + hour,
        "cache_creation": split,
        **more,
    }


def chat(total: int, out: int, read: int = 0, written: int = 0, reasoning: int = 0) -> dict[str, Any]:
    """Usage as Chat Completions states it: all input, cached or not."""
    return {
        "prompt_tokens": total,
        "completion_tokens": out,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def responses(
    total: int, out: int, read: int = 0, half_hour: int = 0, half_day: int = 0, **more: Any
) -> dict[str, Any]:
    """Usage as Responses states it, with what it says beside it."""
    return {
        "input_tokens": total,
        "output_tokens": out,
        "input_tokens_details": {
            "cached_tokens": read,
            "cache_write_tokens": half_hour + half_day,
            "cache_write_tokens_details": {"ttl_30m_tokens": half_hour, "ttl_12h_tokens": half_day},
        },
        **more,
    }


@dataclass(frozen=True)
class Vector:
    """One request: what its provider states, and what it costs."""

    name: str
    dialect: Dialect
    usage: dict[str, Any]
    price: Price
    nano_usd: int
    multipliers: tuple[int, ...] = ()
    tools: dict[str, Any] = field(default_factory=dict)


SEARCHES = {"server_tool_use": {"web_search_requests": 4, "web_fetch_requests": 9}}
COMPACTION = {"iterations": [{"type": "compaction", "input_tokens": 100, "output_tokens": 10}]}
VECTORS = [
    Vector("anthropic, fresh only", A, anthropic(1000, 100), SONNET, 3_000_000 + 1_500_000),
    Vector("anthropic, zeros", A, anthropic(0, 0), SONNET, 0),
    Vector("anthropic, one token", A, anthropic(1, 0), SONNET, 3_000),
    Vector("anthropic, read", A, anthropic(4, 10, read=50_000), SONNET, 12_000 + 150_000 + 15_000_000),
    Vector("anthropic, 5 minutes", A, anthropic(0, 0, five=1000), SONNET, 3_750_000),
    Vector("anthropic, 1 hour", A, anthropic(0, 0, hour=1000), SONNET, 6_000_000),
    Vector(
        "anthropic, both", A, anthropic(7, 3, 11, 13, 17), SONNET, 21_000 + 45_000 + 3_300 + 48_750 + 102_000
    ),
    Vector(
        "anthropic, a write without its time is one of 5 minutes",
        A,
        {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 1000},
        SONNET,
        3_750_000,
    ),
    Vector(
        "anthropic, thinking is part of the output",
        A,
        anthropic(0, 1000, output_tokens_details={"thinking_tokens": 900}),
        SONNET,
        15_000_000,
    ),
    Vector("anthropic, at the threshold", A, anthropic(200_000, 1), SONNET, 600_000_000 + 15_000),
    Vector("anthropic, above it", A, anthropic(200_001, 1), SONNET, 1_200_006_000 + 22_500),
    Vector(
        "anthropic, above it by cache", A, anthropic(1, 2, read=200_000), SONNET, 6_000 + 45_000 + 120_000_000
    ),
    Vector("anthropic, above it by writing", A, anthropic(1, 0, hour=200_000), SONNET, 6_000 + 2_400_000_000),
    Vector("anthropic, searches", A, anthropic(10, 10, **SEARCHES), SONNET, 30_000 + 150_000 + 40_000_000),
    Vector("anthropic, a compaction adds", A, anthropic(10, 1, **COMPACTION), SONNET, 330_000 + 165_000),
    Vector("anthropic, half price", A, anthropic(1, 0), SONNET, 1_500, (PPM // 2,)),
    # 4,500,000 x 0.9 x 1.2
    Vector("anthropic, two multipliers", A, anthropic(1000, 100), SONNET, 4_860_000, (900_000, 1_200_000)),
    # 3000 x 0.333333 x 0.333333 = 333.332666667
    Vector("anthropic, rounded once", A, anthropic(1, 0), SONNET, 334, (333_333, 333_333)),
    Vector("chat, fresh only", C, chat(1000, 100), GPT, 1_250_000 + 1_000_000),
    Vector("chat, cached is within the prompt", C, chat(1000, 100, 900), GPT, 125_000 + 112_500 + 1_000_000),
    Vector("chat, reasoning is within the output", C, chat(0, 100, reasoning=64), GPT, 1_000_000),
    Vector("chat, written is within the prompt", C, chat(1000, 0, 500, 400), GPT, 125_000 + 62_500 + 625_000),
    Vector("chat, more cached than there is", C, chat(10, 0, 20), GPT, 2_500),
    Vector("chat, at the threshold", C, chat(272_000, 1), GPT, 340_000_000 + 10_000),
    Vector("chat, above it", C, chat(272_001, 1), GPT, 680_002_500 + 15_000),
    Vector("chat, above it by cache", C, chat(272_001, 0, 272_000), GPT, 2_500 + 68_000_000),
    Vector("responses, fresh only", R, responses(8, 1), GPT, 10_000 + 10_000),
    Vector("responses, 30 minutes", R, responses(1000, 0, half_hour=1000), GPT, 1_562_500),
    Vector("responses, 12 hours", R, responses(1000, 0, half_day=1000), GPT, 3_125_000),
    Vector(
        "responses, all", R, responses(100, 1, 50, 20, 10), GPT, 25_000 + 6_250 + 31_250 + 31_250 + 10_000
    ),
    Vector(
        "responses, a search beside the usage",
        R,
        responses(8, 1),
        GPT,
        20_000 + 10_000_000,
        tools={"web_search": {"num_requests": 1}},
    ),
    Vector(
        "responses, an image by its tokens",
        R,
        responses(8, 1),
        GPT,
        20_000 + 166_400_000,
        tools={"image_gen": {"output_tokens": 4160, "total_tokens": 4165, "input_tokens": 5}},
    ),
    Vector("a millionth of a nano-USD is one", C, chat(1, 0), TINY, 1),
    Vector("a million of them are one too", C, chat(500_000, 500_000), TINY, 1),
    Vector("and one more is two", C, chat(500_001, 500_000), TINY, 2),
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_a_request_costs_what_was_reckoned_by_hand(vector: Vector) -> None:
    meter = UsageMeter(vector.dialect)
    meter.add(msgspec.json.encode(vector.usage))
    meter.add_tools(msgspec.json.encode(vector.tools))
    assert cost(meter.tokens(), vector.price, *vector.multipliers, units=meter.units()) == vector.nano_usd


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_what_is_kept_of_it_costs_the_same(vector: Vector) -> None:
    meter, again = UsageMeter(vector.dialect), UsageMeter(vector.dialect)
    meter.add(msgspec.json.encode(vector.usage))
    meter.add_tools(msgspec.json.encode(vector.tools))
    again.add(meter.raw)
    assert (again.tokens(), again.units()) == (meter.tokens(), meter.units())
