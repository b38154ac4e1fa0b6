"""What tokens cost."""

from dataclasses import fields
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurus_common.money import PPM, Price, Rates, Tier, Tokens, cost, exact_cost, require_amount

counts = st.integers(0, 10**8)
rates = st.integers(0, 10**15)
KINDS = [field.name for field in fields(Rates)]
some_tokens = st.builds(Tokens, **{field.name: counts for field in fields(Tokens)})
some_rates = st.builds(Rates, **dict.fromkeys(KINDS, rates))
some_units = st.dictionaries(st.sampled_from(["web_search", "image", "page"]), st.integers(0, 10**6))
some_multipliers = st.lists(st.integers(0, 10**9), max_size=2)


@st.composite
def some_prices(draw: st.DrawFn) -> Price:
    """Any price, with up to three tiers and two of three kinds of units."""
    thresholds = sorted(draw(st.sets(st.integers(1, 10**8), max_size=3)))
    tiers = tuple(Tier(threshold, draw(some_rates)) for threshold in thresholds)
    unit_rates = draw(st.dictionaries(st.sampled_from(["web_search", "image"]), rates))
    return Price(draw(some_rates), tiers, unit_rates)


def plain(**known: int) -> Price:
    """A price without tiers and units."""
    return Price(Rates(**known))


class TestCost:
    def test_an_example_by_hand(self) -> None:
        # 3, 0.3, 3.75 and 15 USD per million.
        price = plain(input=3 * 10**9, cache_read=3 * 10**8, cache_write_5m=375 * 10**7, output=15 * 10**9)
        tokens = Tokens(input=10, cache_read=1000, cache_write_5m=100, output=50, reasoning=40)
        assert cost(tokens, price) == 10 * 3000 + 1000 * 300 + 100 * 3750 + 50 * 15000

    def test_each_kind_has_its_own_rate(self) -> None:
        for kind in KINDS:
            tokens, price = Tokens(**{kind: 1_000_000}), plain(**{kind: 7})
            assert cost(tokens, price) == 7
            assert cost(tokens, Price()) == 0

    def test_reasoning_is_not_charged_twice(self) -> None:
        price = plain(output=10**9)
        assert cost(Tokens(output=100, reasoning=100), price) == cost(Tokens(output=100), price)

    def test_it_rounds_up_once(self) -> None:
        assert cost(Tokens(input=1, output=1), plain(input=1, output=1)) == 1
        assert cost(Tokens(input=1), plain(input=1_000_000)) == 1
        assert cost(Tokens(input=1), plain(input=1_000_001)) == 2
        assert cost(Tokens(input=1), plain(input=1_000_000), PPM // 3) == 1
        # 0.5 x 1.5 of 1.4 is 1.05: rounded after each factor it would be 1, then 2.
        assert cost(Tokens(input=1), plain(input=1_400_000), PPM // 2, PPM * 3 // 2) == 2
        assert cost(Tokens(input=1), plain(input=1), PPM // 2, 1, units={}) == 1

    def test_a_tier_counts_for_the_whole_request_and_only_above_its_threshold(self) -> None:
        price = Price(
            Rates(input=10**6, output=10**6),
            (Tier(100, Rates(input=2 * 10**6, output=3 * 10**6)), Tier(200, Rates(input=5 * 10**6))),
        )
        assert cost(Tokens(input=100, output=10), price) == 110
        assert cost(Tokens(input=50, cache_read=30, cache_write_1h=20), price) == 50
        assert cost(Tokens(input=101, output=10), price) == 2 * 101 + 3 * 10
        # Cached input counts for the threshold, output does not.
        assert cost(Tokens(input=1, cache_read=100, output=10), price) == 2 + 30
        assert cost(Tokens(input=1, output=1000), price) == 1001
        assert cost(Tokens(input=201, output=1000), price) == 1005

    def test_units_cost_by_the_thousand(self) -> None:
        price = Price(unit_rates={"web_search": 10 * 10**9})
        assert cost(Tokens(), price, units={"web_search": 3}) == 30_000_000
        assert cost(Tokens(), price, PPM // 2, units={"web_search": 3, "unknown": 9}) == 15_000_000
        assert cost(Tokens(), Price(unit_rates={"page": 1}), units={"page": 1}) == 1

    @given(some_tokens, some_prices(), some_units, some_multipliers)
    def test_never_too_little_and_less_than_one_too_much(
        self, tokens: Tokens, price: Price, units: dict[str, int], multipliers: list[int]
    ) -> None:
        tiers = [tier for tier in price.tiers if tokens.all_input > tier.above_input_tokens]
        chosen = tiers[-1].rates if tiers else price.rates
        exact = sum(Fraction(getattr(tokens, kind) * getattr(chosen, kind), 10**6) for kind in KINDS)
        exact += sum(Fraction(count * price.unit_rates.get(kind, 0), 1000) for kind, count in units.items())
        for multiplier in multipliers:
            exact *= Fraction(multiplier, PPM)
        found = cost(tokens, price, *multipliers, units=units)
        assert type(found) is int
        assert 0 <= found - exact < 1

    @given(some_tokens, some_rates, st.sampled_from(KINDS), counts, some_multipliers)
    def test_one_more_of_anything_never_costs_less(
        self, tokens: Tokens, own: Rates, kind: str, more: int, multipliers: list[int]
    ) -> None:
        before = cost(tokens, Price(own), *multipliers)
        setattr(tokens, kind, getattr(tokens, kind) + more)
        assert cost(tokens, Price(own), *multipliers) >= before >= 0

    @given(some_tokens, some_prices(), some_units)
    def test_the_parts_of_a_receipt_sum_to_the_exact_cost(
        self, tokens: Tokens, price: Price, units: dict[str, int]
    ) -> None:
        own = Price(price.rates_of(tokens), (), price.unit_rates)
        parts = [exact_cost(Tokens(**{kind: getattr(tokens, kind)}), own) for kind in KINDS]
        parts += [exact_cost(Tokens(), own, {kind: count}) for kind, count in units.items()]
        assert sum(parts) == exact_cost(tokens, price, units)

    @given(some_tokens, some_tokens, some_rates)
    def test_parts_never_sum_to_less_than_the_whole(self, one: Tokens, two: Tokens, own: Rates) -> None:
        whole = Tokens(
            **{field.name: getattr(one, field.name) + getattr(two, field.name) for field in fields(Tokens)}
        )
        assert cost(one, Price(own)) + cost(two, Price(own)) >= cost(whole, Price(own))

    def test_cache_writes_add_up(self) -> None:
        tokens = Tokens(cache_write_5m=1, cache_write_30m=2, cache_write_1h=4, cache_write_12h=8)
        assert tokens.cache_write == 15


class TestAmounts:
    @pytest.mark.parametrize("value", [0, -5, 2**63 - 1, -(2**63)])
    def test_integers_of_64_bits_pass(self, value: int) -> None:
        assert require_amount(value, "amount") == value

    @pytest.mark.parametrize("value", [1.0, 1.999999, True, False, "1", None, 1 + 0j])
    def test_nothing_else_is_an_amount(self, value: object) -> None:
        with pytest.raises(TypeError, match="amount_nano_usd must be an int"):
            require_amount(value, "amount_nano_usd")

    @pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
    def test_larger_ones_do_not_fit(self, value: int) -> None:
        with pytest.raises(OverflowError, match="amount_nano_usd"):
            require_amount(value, "amount_nano_usd")
