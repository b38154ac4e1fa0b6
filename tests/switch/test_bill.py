"""A provider's bill beside ours: the shapes that it may have, and differences that were sown into it."""

import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from lurus_switch.bill_check import COST, Checked, Ours, Verdict, check, plain_model
from lurus_switch.commands.bill import _days
from lurus_switch.provider_bills import Bill, BillUnreadable, Line, read_bill

DAYS = [date(2027, 1, day) for day in range(1, 6)]
MODELS = ("claude-a", "claude-b")
COUNTS = {"input": 120_000, "cache_read": 50_000, "output": 8_000}
DOLLAR = 10**9


def ours(days: list[date] = DAYS) -> dict[tuple[date, str], Ours]:
    """The same usage each day, of both models."""
    return {
        (day, model): Ours(Counter(COUNTS, requests=40), cost_nano_usd=3 * DOLLAR)
        for day in days
        for model in MODELS
    }


def theirs() -> Bill:
    """The bill for exactly that."""
    lines = [Line(day, f"{model}-20261001", "", COUNTS, 3 * DOLLAR) for day in DAYS for model in MODELS]
    return Bill(lines, set(DAYS))


def changed(bill: Bill, number: int, cost: int | None = None, **counts: int) -> None:
    """Puts another line in the place of one."""
    line = bill.lines[number]
    found = line.cost_nano_usd if cost is None else cost
    bill.lines[number] = Line(line.day, line.model, line.key, {**line.counts, **counts}, found)


def checked(bill: Bill, **options: Any) -> Checked:
    return check(bill, ours(), DAYS, **options)


def causes(found: Checked) -> set[tuple[str, str, str, str]]:
    return {(str(row.day), row.model, row.kind, row.cause) for row in found.differences}


def test_a_bill_for_exactly_that_agrees() -> None:
    found = checked(theirs())
    assert found.verdict is Verdict.AGREES and found.compared_count == 4 * len(DAYS) * len(MODELS)


class TestSown:
    def test_one_percent(self) -> None:
        bill = theirs()
        changed(bill, 2, input=121_200, cost=round(3.03 * DOLLAR))
        found = checked(bill)
        assert found.verdict is Verdict.DIFFERS
        rows = {row.kind: row for row in found.differences}
        assert set(rows) == {"input", COST} and rows["input"].ratio == pytest.approx(1.01)
        assert "beside the gateway" in rows["input"].cause

    def test_one_percent_of_the_price_alone(self) -> None:
        bill = theirs()
        changed(bill, 2, cost=round(3.03 * DOLLAR))
        [row] = checked(bill).differences
        assert row.kind == COST and row.cause.startswith("the price")

    def test_seventeen_times(self) -> None:
        bill = theirs()
        changed(bill, 4, cost=51 * DOLLAR, **{kind: 17 * count for kind, count in COUNTS.items()})
        found = checked(bill)
        assert {row.kind for row in found.differences} == {*COUNTS, COST}
        assert all(row.cause.startswith("17 times ours") for row in found.differences)

    def test_a_missing_day(self) -> None:
        bill = theirs()
        bill.lines = [line for line in bill.lines if line.day != DAYS[2]]
        bill.days.discard(DAYS[2])
        found = checked(bill)
        assert found.verdict is Verdict.DIFFERS and found.problems == ["the report has no 2027-01-03"]
        assert causes(found) == {("2027-01-03", "", COST, "the report lacks the day, and we have usage")}

    def test_a_missing_day_without_usage_is_not_green_either(self) -> None:
        bill = theirs()
        bill.lines = [line for line in bill.lines if line.day != DAYS[2]]
        bill.days.discard(DAYS[2])
        known = ours([day for day in DAYS if day != DAYS[2]])
        assert check(bill, known, DAYS).verdict is Verdict.INCOMPLETE

    def test_a_missing_model(self) -> None:
        bill = theirs()
        del bill.lines[1]
        found = checked(bill)
        assert {(row.model, row.billed) for row in found.differences} == {("claude-b", 0)}
        assert all("missing in the report" in row.cause for row in found.differences)

    def test_a_model_that_we_have_not_sent(self) -> None:
        bill = theirs()
        bill.lines.append(Line(DAYS[0], "claude-c", "", COUNTS, DOLLAR))
        found = checked(bill)
        assert {row.model for row in found.differences} == {"claude-c"}
        assert all("calls beside the gateway" in row.cause for row in found.differences)

    def test_a_unit_that_nobody_has_metered(self) -> None:
        bill = theirs()
        changed(bill, 0, web_search=12)
        [row] = checked(bill).differences
        assert (row.kind, row.billed, row.metered) == ("web_search", 12, 0)
        assert row.cause == "web_search is billed, and nobody has metered it here"

    @pytest.mark.parametrize("kind", ["cache_write_1h", "server_tool_use.code_execution_requests"])
    def test_a_unit_that_nobody_has_metered_whatever_its_name(self, kind: str) -> None:
        bill = theirs()
        changed(bill, 0, **{kind: 5_000})
        [row] = checked(bill).differences
        assert (row.kind, row.billed) == (kind, 5_000) and "nobody has metered it" in row.cause

    def test_days_of_another_time_zone(self) -> None:
        bill = theirs()
        changed(bill, 2, output=9_000)
        changed(bill, 4, output=7_000)
        found = checked(bill)
        assert len(found.differences) == 2
        assert all("time zone" in row.cause for row in found.differences)

    def test_estimates_are_named(self) -> None:
        known = ours()
        known[DAYS[0], "claude-a"].estimated_count = 3
        bill = theirs()
        changed(bill, 0, output=8_100)
        [row] = check(bill, known, DAYS).differences
        assert row.cause == "3 interrupted requests are estimated here"


class TestNeverFalselyGreen:
    def test_half_a_bill(self) -> None:
        bill = Bill([Line(date(2026, 1, day), "m") for day in range(3, 16)])
        bill.days = {line.day for line in bill.lines}
        days = _days(bill, None, None)
        assert (days[0], days[-1]) == (date(2026, 1, 1), date(2026, 1, 31))
        since, until = datetime(2026, 1, 3, tzinfo=UTC), datetime(2026, 1, 15, tzinfo=UTC)
        assert set(_days(bill, since, until)) == bill.days

    def test_the_current_month_is_whole_until_yesterday(self) -> None:
        today = datetime.now(UTC).date()
        assert _days(Bill(days={today}), None, None)[-1] == today
        earlier = _days(Bill(days={today.replace(day=1)}), None, None)[-1]
        assert earlier == max(today.replace(day=1), today - timedelta(days=1))

    def test_a_report_that_goes_on(self) -> None:
        page = {"data": [{"starting_at": "2027-01-01T00:00:00Z", "results": []}], "has_more": True}
        bill = read_bill(json.dumps(page).encode())
        assert bill.problem and check(bill, {}, [DAYS[0]]).verdict is Verdict.INCOMPLETE

    def test_a_report_without_figures(self) -> None:
        bill = Bill([Line(DAYS[0], "claude-a")], {DAYS[0]})
        assert check(bill, ours(), [DAYS[0]]).verdict is Verdict.INCOMPLETE

    def test_nothing_at_all(self) -> None:
        assert check(Bill(), {}, []).verdict is Verdict.INCOMPLETE


def test_only_lines_of_our_keys_are_compared_and_the_others_told() -> None:
    bill = theirs()
    bill.lines = [
        Line(line.day, line.model, "apikey_1", line.counts, line.cost_nano_usd) for line in bill.lines
    ]
    bill.lines.append(Line(DAYS[0], "claude-a", "apikey_2", COUNTS, DOLLAR))
    found = checked(bill, keys=["apikey_1"])
    assert found.verdict is Verdict.AGREES
    assert found.notes == ["1 lines are of keys that this gateway does not use: left out"]
    assert checked(bill).verdict is Verdict.DIFFERS


def test_a_tolerance_hides_no_more_than_itself() -> None:
    bill = theirs()
    changed(bill, 0, output=8_070)
    assert checked(bill, tolerance=0.01).verdict is Verdict.AGREES
    assert checked(bill, tolerance=0.001).verdict is Verdict.DIFFERS


@pytest.mark.parametrize(
    "name", ["claude-x-20270131", "Claude-X", "claude-x-latest", "claude-x-2027-01-31", " claude-x "]
)
def test_a_release_is_its_model(name: str) -> None:
    assert plain_model(name) == "claude-x"


class TestShapes:
    def test_usage_of_anthropic(self) -> None:
        result = {
            "uncached_input_tokens": 1500,
            "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 500},
            "cache_read_input_tokens": 200,
            "output_tokens": 500,
            "server_tool_use": {"web_search_requests": 10},
            "api_key_id": "apikey_1",
            "workspace_id": None,
            "model": "claude-a",
            "context_window": "0-200k",
        }
        [line] = read(
            {"data": [{"starting_at": "2027-01-01T00:00:00Z", "results": [result]}], "has_more": False}
        )
        assert (line.day, line.model, line.key) == (DAYS[0], "claude-a", "apikey_1")
        assert line.counts == {
            "input": 1500,
            "cache_read": 200,
            "cache_write_5m": 500,
            "cache_write_1h": 1000,
            "output": 500,
            "web_search": 10,
        }
        assert line.cost_nano_usd is None

    def test_costs_of_anthropic_are_in_cents(self) -> None:
        result = {
            "currency": "USD",
            "amount": "123.78912",
            "model": "claude-a",
            "token_type": "output_tokens",
        }
        [line] = read({"data": [{"starting_at": "2027-01-01T00:00:00Z", "results": [result]}]})
        assert line.cost_nano_usd == 1_237_891_200 and not line.counts

    def test_usage_of_openai_contains_what_was_cached(self) -> None:
        result = {
            "object": "organization.usage.completions.result",
            "input_tokens": 1000,
            "input_cached_tokens": 800,
            "output_tokens": 500,
            "num_model_requests": 5,
            "model": "gpt-x",
            "api_key_id": None,
        }
        start = int(datetime.fromisoformat("2027-01-01T00:00:00+00:00").timestamp())
        [line] = read({"object": "page", "data": [{"start_time": start, "results": [result]}]})
        assert (line.day, line.model) == (DAYS[0], "gpt-x")
        assert line.counts == {"input": 200, "cache_read": 800, "output": 500, "requests": 5}

    def test_usage_of_openai_with_all_its_parts(self) -> None:
        result = {
            "input_tokens": 1000,
            "input_cached_tokens": 700,
            "input_cache_write_tokens": 200,
            "input_uncached_tokens": 100,
            "input_text_tokens": 90,
            "input_cached_audio_tokens": 5,
            "output_tokens": 50,
            "output_audio_tokens": 3,
            "batch": False,
            "model": "gpt-x",
        }
        [line] = read({"data": [{"start_time": 1798761600, "results": [result]}]})
        assert line.counts == {"input": 100, "cache_read": 700, "cache_write_5m": 200, "output": 50}

    def test_a_count_without_a_word_of_ours_keeps_its_own(self) -> None:
        result = {
            "model": "m",
            "server_tool_use": {"web_search_requests": 0, "code_execution_requests": 3},
            "cache_creation": {"ephemeral_24h_input_tokens": 7},
            "speed": None,
        }
        [line] = read({"data": [{"starting_at": "2027-01-01T00:00:00Z", "results": [result]}]})
        assert line.counts == {
            "web_search": 0,
            "server_tool_use.code_execution_requests": 3,
            "cache_creation.ephemeral_24h_input_tokens": 7,
        }

    def test_costs_of_openai_name_the_model_in_their_line(self) -> None:
        result = {"amount": {"value": 0.06, "currency": "usd"}, "line_item": "gpt-x, cached input"}
        [line] = read({"data": [{"start_time": 1798761600, "results": [result]}]})
        assert (line.model, line.cost_nano_usd) == ("gpt-x", 60_000_000)

    def test_pages_joined_in_a_list(self) -> None:
        pages = [
            {
                "data": [
                    {"starting_at": f"{day}T00:00:00Z", "results": [{"model": "m", "output_tokens": 1}]}
                ],
                "has_more": day != DAYS[-1],
            }
            for day in DAYS
        ]
        bill = read_bill(json.dumps(pages).encode())
        assert bill.days == set(DAYS) and len(bill.lines) == len(DAYS) and not bill.problem

    def test_csv(self) -> None:
        text = "day,model,api_key_id,input,output,cost_usd\n2027-01-01,claude-a,apikey_1,1500,500,1.25\n"
        [line] = read_bill(text.encode()).lines
        assert (line.key, line.counts) == ("apikey_1", {"input": 1500, "output": 500})
        assert line.cost_nano_usd == 1_250_000_000

    def test_a_time_of_another_zone_is_of_the_day_in_utc(self) -> None:
        page = {"data": [{"starting_at": "2027-01-01T22:00:00-05:00", "results": []}]}
        assert read_bill(json.dumps(page).encode()).days == {DAYS[0] + timedelta(days=1)}


def read(page: dict[str, Any]) -> list[Line]:
    return read_bill(json.dumps(page).encode()).lines


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff", "byte 0: not UTF-8"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"data": {}}', "no list `data`"),
        (b'{"data": [{}]}', r"data\[0\]: there is no list `results`"),
        (b'{"data": [{"results": []}]}', r"data\[0\]: there is no day"),
        (b'{"data": [{"start_time": 0, "results": [1]}]}', r"data\[0\].results\[0\]: not an object"),
        (b'{"data": [{"start_time": 0, "results": [{"output_tokens": 1.5}]}]}', "output_tokens: not a whole"),
        (b'{"data": [{"start_time": 0, "results": [{"output_tokens": -1}]}]}', "output_tokens: not a count"),
        (b'{"data": [{"start_time": 0, "results": [{"amount": "x"}]}]}', "amount: not an amount"),
        (b'{"data": [{"start_time": 0, "results": [{"amount": "NaN"}]}]}', "amount: not an amount"),
        (
            b'{"data": [{"start_time": 0, "results": [{"amount": "1", "currency": "EUR"}]}]}',
            "in EUR, not in USD",
        ),
        (
            b'{"data": [{"start_time": 0, "results": [{"input_tokens": 1, "input_cached_tokens": 2}]}]}',
            "more cached tokens",
        ),
        (b"model,input\nm,1\n", "no column for the day"),
        (b"day,input\n2027-01-01,1\n", "no column `model`"),
        (b"day,model,input\n2027-01-01,m\n", "line 2: not 3 columns"),
        (b"day,model,input\n2027-01-01,m,x\n", "line 2: input: not a whole number"),
        (b"day,model,input\nyesterday,m,1\n", "line 2: there is no day"),
        (b"day,model,input,writes\n2027-01-01,m,1,9\n", "line 1: column `writes` is not known"),
        (b'"day,model\n', "line 1: unexpected end"),
        (b'{"data": [{"start_time": 0, "results": [{"amount": "1e999999"}]}]}', "amount: not an amount"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(data: bytes, says: str) -> None:
    with pytest.raises(BillUnreadable, match=says):
        read_bill(data)
