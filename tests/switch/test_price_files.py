"""Prices in files: exact or refused, each problem with its place, and there and back again."""

import json
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurus.provider.v1.provider_pb2 import Price
from lurus_switch.litellm_prices import looks_like_litellm, read_litellm
from lurus_switch.price_files import KINDS, nano_usd, read_csv, read_json, write_csv, write_json

rates = st.integers(0, 10**15)
names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20)


@st.composite
def some_prices(draw: st.DrawFn) -> Price:
    """A price as the provider service may tell it."""
    price = Price(model=draw(names), provider_id=draw(st.sampled_from(["", "one"])))
    price.effective_time.FromMicroseconds(draw(st.integers(0, 4 * 10**15)))
    stated = [
        price,
        *(
            price.tiers.add(above_input_tokens=number)
            for number in draw(st.sets(st.integers(1, 9), max_size=4))
        ),
    ]
    for target in stated:
        for kind in KINDS:
            setattr(target, f"{kind}_nano_usd", draw(rates))
    for kind in draw(st.sets(st.sampled_from(["web_search", "image_gen_images"]))):
        price.unit_rates.add(kind=kind, nano_usd_per_thousand=draw(rates))
    return price


def problems(*rows: Any) -> list[str]:
    return read_json(json.dumps({"prices": rows})).problems


class TestExactness:
    @given(st.lists(some_prices(), min_size=1, max_size=4))
    @settings(max_examples=50, deadline=None)
    def test_what_is_written_is_read_again(self, prices: list[Price]) -> None:
        for text, read in ((write_json(prices), read_json), (write_csv(prices), read_csv)):
            found = read(text)
            assert found.problems == []
            for one in [row.price for row in found.rows]:
                one.tiers.sort(key=lambda tier: tier.above_input_tokens)
                one.unit_rates.sort(key=lambda rate: rate.kind)
            for one in prices:
                one.tiers.sort(key=lambda tier: tier.above_input_tokens)
                one.unit_rates.sort(key=lambda rate: rate.kind)
            assert [row.price for row in found.rows] == prices

    @pytest.mark.parametrize(
        ("text", "amount"),
        [("3", 3 * 10**9), ("$0.000000001", 1), ("1e-9", 1), ("0e-999999999", 0), ("0.1", 10**8)],
    )
    def test_decimals_are_exact(self, text: str, amount: int) -> None:
        assert nano_usd(text) == amount

    @pytest.mark.parametrize(
        "text",
        [
            "0.0000000001",
            "1e-999999999",
            "1e999999999",
            "-1",
            "NaN",
            "inf",
            "",
            "3,0",
            "0x3",
            "1" * 50,
            True,
            None,
        ],
    )
    def test_what_is_not_exact_or_no_amount_is_refused(self, text: Any) -> None:
        with pytest.raises(ValueError, match=r"amount|exact|digits"):
            nano_usd(text)

    def test_numbers_in_json_never_become_floats(self) -> None:
        found = read_json('{"prices": [{"model": "m", "input": 0.1, "output": 0.30000000000000004}]}')
        assert found.problems == [
            "prices[0].output: 0.30000000000000004 is not exact in nano-USD per million tokens"
        ]
        found = read_json('{"prices": [{"model": "m", "input": 0.1, "output": 3}]}')
        assert found.rows[0].price.input_nano_usd == 10**8


class TestProblems:
    def test_each_has_its_place_and_all_are_told(self) -> None:
        good = {"model": "m", "input": "1", "output": "2"}
        found = problems(
            good,
            {"model": "m", "output": "2"},
            {**good, "inptu": 3},
            {**good, "tiers": [{"above_input_tokens": 5, "input": "x", "output": "1"}]},
            {**good, "units": {"Web Search": "1"}},
            {**good, "from": "tomorrow"},
            7,
            {**good, "model": ""},
        )
        assert [one.split(":")[0] for one in found] == [
            "prices[1].input",
            "prices[2].inptu",
            "prices[3].tiers[0].input",
            "prices[4].unit_rates.kind",
            "prices[5].from",
            "prices[6]",
            "prices[7].model",
        ]

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{", '{"prices": 3}', '{"prices": [], "prices": []}', '{"prices": [NaN]}', "[" * 100_000],
    )
    def test_what_is_no_such_file_is_refused(self, text: str) -> None:
        assert len(read_json(text).problems) == 1

    def test_lines_of_csv_are_named(self) -> None:
        found = read_csv("model,input,output\nm,1,2\nn,x,2\no,1\n\np,1,-2\n")
        assert [one.split(":")[0] for one in found.problems] == ["line 3.input", "line 4", "line 6.output"]
        assert read_csv("input,output\n1,2\n").problems[0].startswith("line 1: ")
        assert read_csv('model,input,output\n"m,1,2\n').problems

    def test_cached_tokens_are_never_free_by_omission(self) -> None:
        price = read_csv("model,input,output,above.9.input,above.9.output\nm,1,2,3,4\n").rows[0].price
        assert (price.cache_read_nano_usd, price.cache_write_12h_nano_usd) == (10**9, 10**9)
        assert price.tiers[0].cache_read_nano_usd == 3 * 10**9


class TestLiteLlm:
    ENTRY: ClassVar = {
        "litellm_provider": "anthropic",
        "mode": "chat",
        "input_cost_per_token": 3e-06,
        "output_cost_per_token": 1.5e-05,
        "cache_creation_input_token_cost": 3.75e-06,
        "cache_creation_input_token_cost_above_1hr": 6e-06,
        "cache_read_input_token_cost": 3e-07,
        "input_cost_per_token_above_200k_tokens": 6e-06,
        "output_cost_per_token_above_200k_tokens": 2.25e-05,
        "cache_read_input_token_cost_above_200k_tokens": 6e-07,
        "search_context_cost_per_query": {"search_context_size_medium": 0.01},
        "input_cost_per_token_batches": 1.5e-06,
    }

    def test_an_entry_becomes_a_price(self) -> None:
        found = read_litellm(json.dumps({"sample_spec": {}, "claude-x": self.ENTRY}))
        assert (found.problems, found.left_out) == ([], ["claude-x: input_cost_per_token_batches"])
        price = found.rows[0].price
        assert [getattr(price, f"{kind}_nano_usd") for kind in KINDS] == [
            3 * 10**9, 3 * 10**8, 375 * 10**7, 375 * 10**7, 6 * 10**9, 6 * 10**9, 15 * 10**9
        ]  # fmt: skip
        tier = price.tiers[0]
        assert tier.above_input_tokens == 200_000
        # What the tier does not state is as in the base: writes.
        assert [getattr(tier, f"{kind}_nano_usd") for kind in KINDS] == [
            6 * 10**9, 6 * 10**8, 375 * 10**7, 375 * 10**7, 6 * 10**9, 6 * 10**9, 225 * 10**8
        ]  # fmt: skip
        assert price.unit_rates[0].nano_usd_per_thousand == 10 * 10**9

    def test_what_is_not_exact_is_named_and_can_be_left_out_by_pattern(self) -> None:
        text = json.dumps(
            {"claude-x": self.ENTRY, "odd": {**self.ENTRY, "output_cost_per_token": 1.4999999999999e-07}}
        )
        found = read_litellm(text)
        assert [one.split(": ")[0] for one in found.problems] == ["odd.output_cost_per_token"]
        found = read_litellm(text, ["claude-*"])
        assert (found.problems, [row.place for row in found.rows]) == ([], ["claude-x"])

    def test_what_is_not_priced_by_tokens_is_left_out(self) -> None:
        found = read_litellm(
            json.dumps({"dall-e": {"litellm_provider": "openai", "mode": "image_generation"}})
        )
        assert (found.rows, len(found.left_out)) == ([], 1)

    def test_it_is_told_from_our_own(self) -> None:
        assert looks_like_litellm({"m": self.ENTRY})
        assert not looks_like_litellm({"prices": [self.ENTRY]})
