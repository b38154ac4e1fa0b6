"""Imports of prices: all or none, once, and with what each follows."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lurus.provider.v1.provider_pb2 import ImportProblem, Price
from lurus_provider.price_import import Importer

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def price(model: str = "m", rate: int = 7, days: int | None = None, **fields: Any) -> Price:
    """A price that counts from so many days after now; None leaves its time unsaid."""
    found = Price(model=model, input_nano_usd=rate, **fields)
    if days is not None:
        found.effective_time.FromDatetime(NOW + timedelta(days=days))
    return found


OLD = price(days=-10, price_id="price_old", source="once")
LATER = price(rate=9, days=10, price_id="price_later")


def compare(*given: Price) -> Any:
    return Importer([OLD, LATER], ["one"], NOW).compare(given)


def told(found: Any) -> list[tuple[int, str]]:
    problems: list[ImportProblem] = found.problems
    return [(problem.index, problem.field) for problem in problems]


def test_what_is_in_effect_is_no_change_whatever_its_id_and_source() -> None:
    found = compare(price(source="again"))
    assert (found.unchanged_count, found.changes, found.problems) == (1, [], [])


def test_new_rates_follow_what_is_in_effect_at_their_time() -> None:
    found = compare(price(rate=8), price(rate=8, days=20), price(rate=8, days=-20), price("new"))
    before = [change.previous.price_id for change in found.changes]
    assert before == ["price_old", "price_later", "", ""]
    assert found.changes[0].price.effective_time.ToDatetime(tzinfo=UTC) == NOW
    assert all(change.price.price_id.startswith("price_") for change in found.changes)


def test_tiers_and_units_make_a_difference_and_their_order_none() -> None:
    one = price(days=-5, price_id="price_tiers")
    one.tiers.add(above_input_tokens=5, input_nano_usd=1)
    one.tiers.add(above_input_tokens=9, input_nano_usd=2)
    given = price()
    given.tiers.add(above_input_tokens=9, input_nano_usd=2)
    given.tiers.add(above_input_tokens=5, input_nano_usd=1)
    importer = Importer([OLD, one], [], NOW)
    assert importer.compare([given]).unchanged_count == 1
    given.unit_rates.add(kind="web_search", nano_usd_per_thousand=1)
    assert len(Importer([OLD, one], [], NOW).compare([given]).changes) == 1


def test_every_problem_is_told_with_its_place() -> None:
    twice = price("tiers")
    for _ in range(2):
        twice.tiers.add(above_input_tokens=5)
    found = compare(
        price(provider_id="nobody"),
        price(rate=8, days=-10),
        price(rate=8, price_id="price_old"),
        price("new"),
        price("new", rate=8),
        price("x", price_id="price_catalogue-x"),
        twice,
        price("bad\n"),
    )
    assert told(found) == [
        (0, "provider_id"),
        (1, "effective_time"),
        (2, "price_id"),
        (4, "model"),
        (5, "price_id"),
        (6, "tiers"),
        (7, "model"),
    ]


@pytest.mark.parametrize("is_dry_run", [True, False])
def test_ids_are_told_only_of_what_is_stored(is_dry_run: bool) -> None:
    response = compare(price(rate=8)).response(is_dry_run=is_dry_run)
    assert (response.changes[0].price.price_id == "") is is_dry_run
