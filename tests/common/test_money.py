"""What tokens cost."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurus_common.money import PPM, Price, Tokens, cost, require_amount

counts = st.integers(0, 10**8)
rates = st.integers(0, 10**15)
some_tokens = st.builds(Tokens, **{field.name: counts for field in fields(Tokens)})
some_prices = st.builds(Price, **{field.name: rates for field in fields(Price)})


class TestCost:
    def test_an_example_by_hand(self) -> None:
        # 3, 0.3, 3.75 and 15 USD per million.
        price = Price(input=3 * 10**9, cache_read=3 * 10**8, cache_write_5m=375 * 10**7, output=15 * 10**9)
        tokens = Tokens(input=10, cache_read=1000, cache_write_5m=100, output=50, reasoning=40)
        assert cost(tokens, price) == 10 * 3000 + 1000 * 300 + 100 * 3750 + 50 * 15000

    def test_each_kind_has_its_own_rate(self) -> None:
        for field in fields(Price):
            tokens, price = Tokens(**{field.name: 1_000_000}), Price(**{field.name: 7})
            assert cost(tokens, price) == 7
            assert cost(tokens, Price()) == 0

    def test_reasoning_is_not_charged_twice(self) -> None:
        price = Price(output=10**9)
        assert cost(Tokens(output=100, reasoning=100), price) == cost(Tokens(output=100), price)

    def test_it_rounds_up_once(self) -> None:
        assert cost(Tokens(input=1, output=1), Price(input=1, output=1)) == 1
        assert cost(Tokens(input=1), Price(input=1_000_000)) == 1
        assert cost(Tokens(input=1), Price(input=1_000_001)) == 2
        assert cost(Tokens(input=1), Price(input=1_000_000), PPM // 3) == 1

    @given(some_tokens, some_prices, st.integers(0, 10**9))
    def test_never_too_little_and_less_than_one_too_much(
        self, tokens: Tokens, price: Price, multiplier: int
    ) -> None:
        exact = sum(getattr(tokens, field.name) * getattr(price, field.name) for field in fields(Price))
        found = cost(tokens, price, multiplier)
        assert type(found) is int
        assert 0 <= found * 10**12 - exact * multiplier < 10**12

    @given(some_tokens, some_tokens, some_prices)
    def test_parts_never_sum_to_less_than_the_whole(self, one: Tokens, two: Tokens, price: Price) -> None:
        whole = Tokens(
            **{field.name: getattr(one, field.name) + getattr(two, field.name) for field in fields(Tokens)}
        )
        assert cost(one, price) + cost(two, price) >= cost(whole, price)

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
