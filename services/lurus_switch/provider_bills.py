"""Reads a provider's own usage and cost reports: what it says it has served, and what it charges.

JSON in the shapes that the vendors' admin interfaces document, one page or several joined in a list:

* Anthropic, `usage_report/messages` and `cost_report`: `data[].starting_at`, `results[]`. Costs are in cents.
* OpenAI, `organization/usage/completions` and `organization/costs`: `data[].start_time`, `results[]`.

Or CSV, a row for each day, model and key: `day`, `model`, optionally `api_key_id`, and any of the `KINDS`
below and `cost_usd`; fields of the JSON may stand there under their own names too. Whatever cannot be read is
named with its place, and nothing is guessed. A count that a vendor states and that we have no word for keeps
the vendor's: it is compared too, with nothing.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal, DecimalException
from typing import Any

# What is compared, by our own names.
TOKEN_KINDS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
# Besides tokens; both vendors' names of theirs become these.
UNIT_KINDS = ("web_search",)
KINDS = ("requests", *TOKEN_KINDS, *UNIT_KINDS)
MAX_BYTES = 64 * 1024 * 1024
MAX_ROWS = 1_000_000
MAX_COUNT = 10**18
_NANO = Decimal(10**9)
_CENTS = Decimal(10**7)
_ANTHROPIC = {
    "uncached_input_tokens": "input",
    "cache_read_input_tokens": "cache_read",
    "cache_creation.ephemeral_5m_input_tokens": "cache_write_5m",
    "cache_creation.ephemeral_1h_input_tokens": "cache_write_1h",
    "output_tokens": "output",
    "server_tool_use.web_search_requests": "web_search",
}
_OPENAI = {
    "input_tokens": "input",
    "input_cached_tokens": "cache_read",
    # Ours, for as long as they last there, are added to these.
    "input_cache_write_tokens": "cache_write_5m",
    "output_tokens": "output",
    "num_model_requests": "requests",
}
# Contained in the counts above, by what was in them.
_CONTAINED = re.compile(r"(input|output)_(cached_)?(uncached|text|image|audio)_tokens")
# Says whose and of what, and no count.
# fmt: off
_TOLD = frozenset((
    "object", "model", "model_version", "line_item", "description", "cost_type", "token_type",
    "context_window", "service_tier", "speed", "inference_geo", "batch", "api_source", "quantity",
    "api_key", "api_key_id", "api_key_name", "workspace", "workspace_id", "workspace_name",
    "organization_id", "project_id", "project_name", "user_id", "account_id", "service_account_id",
    "currency", "amount", "amount.value", "amount.currency", "cost_usd", "end_time", "end_time_iso",
    "ending_at", "start_time_iso",
))
# fmt: on
_DAYS = ("day", "date", "starting_at", "start_time", "usage_date_utc")
# Digits of a day like 20270131; seconds since 1970 have more.
_COMPACT_DAY = 8
_NAMES = {**{kind: kind for kind in KINDS}, **_ANTHROPIC}
_COLUMNS = frozenset({*_NAMES, *_OPENAI, *_TOLD, *_DAYS})


class BillUnreadable(ValueError):
    """A report cannot be read; says where and why."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a report says of one day, model and key."""

    day: date
    model: str
    # As the vendor calls it; empty if the report does not go by key.
    key: str = ""
    # By kind; a kind that the report does not state is not there.
    counts: Mapping[str, int] = field(default_factory=dict)
    cost_nano_usd: int | None = None


@dataclass(slots=True)
class Bill:
    """A whole report."""

    lines: list[Line] = field(default_factory=list)
    # Every day that it speaks of, also if nothing was used on it.
    days: set[date] = field(default_factory=set)
    # Why it is not the whole report; empty if it is.
    problem: str = ""


def read_bill(data: bytes) -> Bill:
    """Returns what a file says.

    Raises:
        BillUnreadable: names the place.
    """
    if len(data) > MAX_BYTES:
        raise BillUnreadable(f"the file is larger than {MAX_BYTES // 2**20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BillUnreadable(f"byte {error.start}: not UTF-8") from None
    bill = _from_json(text) if text.lstrip()[:1] in ("{", "[") else _from_csv(text)
    if len(bill.lines) > MAX_ROWS:
        raise BillUnreadable(f"more than {MAX_ROWS} rows")
    return bill


def _from_json(text: str) -> Bill:
    try:
        # Amounts are decimal: a float would change them.
        found = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise BillUnreadable(f"not JSON: {error}") from None
    bill = Bill()
    pages = found if isinstance(found, list) else [found]
    for number, page in enumerate(pages):
        _read_page(bill, page, f"page {number + 1}: " if len(pages) > 1 else "")
    last = pages[-1] if pages else {}
    if isinstance(last, dict) and last.get("has_more"):
        bill.problem = "the report goes on: its last page says `has_more`"
    return bill


def _read_page(bill: Bill, page: object, place: str) -> None:
    data = page.get("data") if isinstance(page, dict) else None
    if not isinstance(data, list):
        raise BillUnreadable(f"{place}there is no list `data`: is it a usage or cost report?")
    for number, bucket in enumerate(data):
        where = f"{place}data[{number}]"
        if not isinstance(bucket, dict) or not isinstance(bucket.get("results"), list):
            raise BillUnreadable(f"{where}: there is no list `results`")
        day = _day(bucket.get("starting_at", bucket.get("start_time")), where)
        bill.days.add(day)
        for index, result in enumerate(bucket["results"]):
            if not isinstance(result, dict):
                raise BillUnreadable(f"{where}.results[{index}]: not an object")
            bill.lines.append(_line(day, _flat(result), f"{where}.results[{index}]"))


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested fields under dotted names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _line(day: date, fields: Mapping[str, Any], where: str) -> Line:
    key = str(fields.get("api_key_id") or fields.get("api_key") or "")
    return Line(day, _model(fields), key, _counts(fields, where), _cost(fields, where))


def _model(fields: Mapping[str, Any]) -> str:
    """Returns the model; of OpenAI's costs it stands before the comma of `gpt-5, input`."""
    model = fields.get("model") or fields.get("model_version")
    if not model and fields.get("line_item"):
        model = str(fields["line_item"]).partition(",")[0]
    return str(model or "").strip()


def _counts(fields: Mapping[str, Any], where: str) -> dict[str, int]:
    is_openai = fields.get("input_tokens") is not None
    names = _OPENAI if is_openai else _NAMES
    found = {
        kind: _count(fields[name], f"{where}: {name}")
        for name, kind in names.items()
        if fields.get(name) is not None
    }
    if is_openai:
        found = {"cache_read": 0, "output": 0} | found
        # Its input contains what was cached.
        found["input"] -= found["cache_read"] + found.get("cache_write_5m", 0)
        if found["input"] < 0:
            raise BillUnreadable(f"{where}: more cached tokens than tokens")
    return found | _unknown_counts(fields, names, where)


def _unknown_counts(fields: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, int]:
    """Returns what else is counted, under the vendor's names; text is no count."""
    return {
        name: _count(value, f"{where}: {name}")
        for name, value in fields.items()
        if name not in names
        and name not in _TOLD
        and not _CONTAINED.fullmatch(name)
        and isinstance(value, int | Decimal)
        and not isinstance(value, bool)
        and value
    }


def _cost(fields: Mapping[str, Any], where: str) -> int | None:
    """Returns nano-USD, None if there is no amount."""
    if fields.get("cost_usd") is not None:
        return _nano(fields["cost_usd"], _NANO, f"{where}: cost_usd")
    if fields.get("amount.value") is not None:
        _require_usd(fields.get("amount.currency"), where)
        return _nano(fields["amount.value"], _NANO, f"{where}: amount.value")
    if fields.get("amount") is not None:
        _require_usd(fields.get("currency"), where)
        return _nano(fields["amount"], _CENTS, f"{where}: amount")
    return None


def _require_usd(currency: object, where: str) -> None:
    if str(currency or "usd").lower() != "usd":
        raise BillUnreadable(f"{where}: an amount in {str(currency)[:8]}, not in USD")


def _nano(value: object, factor: Decimal, where: str) -> int:
    try:
        amount = Decimal(str(value).strip()) * factor
    except DecimalException:
        raise BillUnreadable(f"{where}: not an amount") from None
    if not amount.is_finite() or abs(amount) > MAX_COUNT:
        raise BillUnreadable(f"{where}: not an amount")
    return round(amount)


def _count(value: object, where: str) -> int:
    try:
        count = int(str(value).strip())
    except ValueError:
        raise BillUnreadable(f"{where}: not a whole number") from None
    if not 0 <= count <= MAX_COUNT:
        raise BillUnreadable(f"{where}: not a count")
    return count


def _day(value: object, where: str) -> date:
    """Returns the day in UTC of a date, a time, or Unix seconds."""
    try:
        text = str(value).strip()
        if isinstance(value, int) or (len(text) > _COMPACT_DAY and text.isdecimal()):
            return datetime.fromtimestamp(int(text), UTC).date()
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        raise BillUnreadable(f"{where}: there is no day in it") from None
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date()


def _from_csv(text: str) -> Bill:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
    except csv.Error as error:
        raise BillUnreadable(f"line 1: {error}") from None
    day_name = next((name for name in _DAYS if name in names), None)
    if day_name is None:
        raise BillUnreadable(f"line 1: no column for the day ({', '.join(_DAYS)})")
    if not {"model", "model_version"} & set(names):
        raise BillUnreadable("line 1: no column `model`")
    for name in names:
        if name not in _COLUMNS and not _CONTAINED.fullmatch(name):
            raise BillUnreadable(
                f"line 1: column `{name[:40]}` is not known; leave out what is not to be compared"
            )
    bill = Bill()
    for number, row in _rows(reader, names):
        day = _day(row[day_name], f"line {number}")
        bill.days.add(day)
        bill.lines.append(_line(day, {name: value for name, value in row.items() if value}, f"line {number}"))
    return bill


def _rows(reader: "csv.DictReader[str]", names: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        for row in reader:
            values = list(row.values())
            if len(values) != len(names) or None in row or any(value is None for value in values):
                raise BillUnreadable(f"line {reader.line_num}: not {len(names)} columns")
            yield reader.line_num, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise BillUnreadable(f"line {reader.line_num}: {error}") from None
