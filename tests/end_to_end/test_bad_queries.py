"""The bad-input matrix for operators: queries, prices and providers that make no sense (B24 to B26, B49).

A filter is compared as it is: nothing in it is a pattern but one `*` at the end of a model's name.
"""

from typing import Any

import httpx
import pytest
from tests.support.bad_input import INTERNALS
from tests.support.mesh import Mesh


def operator(mesh: Mesh, method: str, path: str, **arguments: Any) -> httpx.Response:
    """Calls the REST interface as the operator; the answer has an id and no insides."""
    token = {"authorization": f"Bearer {mesh.admin_token}"}
    reply = mesh.http.request(method, f"/api/v1/{path}", headers=token, **arguments)
    assert reply.headers["request-id"] == reply.headers["x-request-id"]
    assert reply.headers["content-type"] == "application/json"
    assert not INTERNALS.search(reply.text) or reply.status_code == 200
    return reply


def refuse_operator(
    mesh: Mesh, method: str, path: str, status: int = 400, reason: str = "INVALID_REQUEST", **arguments: Any
) -> None:
    """Fails unless the REST interface refuses this in its own shape."""
    reply = operator(mesh, method, path, **arguments)
    error = reply.json()["error"]
    assert (reply.status_code, error["reason"]) == (status, reason), reply.text
    assert sorted(error) == ["code", "message", "metadata", "reason"]


@pytest.mark.parametrize(
    "query",
    {
        "page_size": "-1",
        "page_size=": "99999999999999",
        "page_token": "junk",
        "page_token=": "%00",
        "filter.start_time": "99999-01-01T00:00:00Z",
        "filter.end_time": "yesterday",
        "filter.model": "m" * 10_000,
        "filter.session_id": "%25" * 10_000,
        "filter.account_id": "%FF",
        "filter.min_http_status": "600",
        "filter.terminal": "{%22$gt%22:%22%22}",
        "filter.wizard": "1",
    }.items(),
    ids=lambda query: f"B25-{query[0]}",
)
def test_b25_a_log_query_that_makes_no_sense_is_refused(mesh: Mesh, query: tuple[str, str]) -> None:
    name, value = query
    if len(value) > 2000:
        value = value[:6000]  # A URL has 8 KiB.
    for method in ("logs", "logs:export"):
        if not (method == "logs:export" and name.startswith("page_")):
            refuse_operator(mesh, "GET", f"{method}?{name.rstrip('=')}={value}")


def test_b25_a_time_range_that_ends_before_it_starts_is_refused(mesh: Mesh) -> None:
    times = "filter.start_time=2030-01-01T00:00:00Z&filter.end_time=2020-01-01T00:00:00Z"
    for method in ("logs", "logs:export", "stats"):
        refuse_operator(mesh, "GET", f"{method}?{times}")


def test_b25_a_page_is_never_larger_than_a_thousand(mesh: Mesh) -> None:
    assert len(operator(mesh, "GET", "logs?page_size=1000000000").json()["events"]) <= 1000


def test_b25_nobody_reads_the_log_with_a_key(mesh: Mesh) -> None:
    for headers in ({}, mesh.headers(), {"authorization": "Bearer junk"}):
        reply = mesh.http.get("/api/v1/logs", headers=headers)
        assert (reply.status_code, reply.json()["error"]["reason"]) == (401, "KEY_INVALID")
    refuse_operator(mesh, "GET", "logs/req_01M831E0S5QAVQ6JXKF8E10WN5", 404, "NOT_FOUND")
    refuse_operator(mesh, "GET", "logs/'%20OR%201=1--", 404, "NOT_FOUND")
    refuse_operator(mesh, "GET", "transactions?account_id='%20OR%201=1--", 404, "NOT_FOUND")


@pytest.mark.parametrize("pattern", ["%_" * 60, "(a+)+$", "' OR 1=1 OR model='", "_andbox-text", "s.*t"])
def test_b26_a_pattern_in_a_filter_is_a_text(mesh: Mesh, pattern: str) -> None:
    for name in ("model", "account_id"):
        shown = pattern[:60] if name == "account_id" else pattern
        found = operator(mesh, "GET", "logs", params={f"filter.{name}": shown}).json()
        assert found["events"] == []


@pytest.mark.parametrize(
    "value",
    ["-1", "NaN", "Infinity", 1.5, "1.0000000000001", 10**30, str(10**30), 10**15 + 1, "", True, []],
    ids=str,
)
def test_b49_a_price_that_is_none_is_refused_and_not_stored(mesh: Mesh, value: Any) -> None:
    for name in ("input_nano_usd", "output_nano_usd", "cache_write_1h_nano_usd"):
        price = {"model": "b49", "input_nano_usd": "1", "output_nano_usd": "1", name: value}
        refuse_operator(mesh, "POST", "prices", json=price)
    assert operator(mesh, "GET", "prices?model=b49").json()["prices"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"weight": -1},
        {"weight": 10_001},
        {"level": -1},
        {"cost_multiplier_ppm": "-5"},
        {"supported_models": [f"m-{number}" for number in range(10_001)]},
        {"supported_models": [""]},
        {"base_url": "file:///etc/passwd"},
        {"dialects": ["DIALECT_WIZARD"]},
        {"wizard": 1},
    ],
    ids=lambda fields: f"B49-{next(iter(fields))}",
)
def test_b49_a_provider_that_makes_no_sense_is_refused_and_not_stored(
    mesh: Mesh, fields: dict[str, Any]
) -> None:
    provider = {
        "provider_id": "b49",
        "dialects": ["DIALECT_ANTHROPIC"],
        "base_url": "http://127.0.0.1:9",
        "credentials": [{"secret": "x"}],
        "supported_models": ["b49"],
        **fields,
    }
    refuse_operator(mesh, "POST", "providers", json=provider)
    refuse_operator(mesh, "GET", "providers/b49", 404, "NOT_FOUND")
