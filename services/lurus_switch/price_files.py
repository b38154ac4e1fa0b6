"""Prices in files: our own JSON and CSV, and LiteLLM's map. Amounts are exact decimals, never floats.

Amounts are USD per million tokens, of units USD per thousand. What is not exact
in nano-USD is refused. A cache rate that is not stated is that of fresh input,
so that no token is free by omission.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from protovalidate import ValidationError, Validator

from lurus.provider.v1.provider_pb2 import Price, PriceTier
from lurus_common.money import NANO_USD_PER_USD
from lurus_common.prices import price_of

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_DIGITS = 40
KINDS = (
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_30m",
    "cache_write_1h",
    "cache_write_12h",
    "output",
)
_NEEDED = ("input", "output")
_FIELDS = frozenset({"model", "provider", "from", "source", "tiers", "units", *KINDS})
_TIER_FIELDS = frozenset({"above_input_tokens", *KINDS})
_VALIDATOR = Validator()


@dataclass(frozen=True, slots=True)
class Row:
    """A price, and where in the file it stands."""

    place: str
    price: Price


@dataclass(slots=True)
class Reading:
    """What a file says. With a problem, nothing of it is to be used."""

    rows: list[Row] = field(default_factory=list)
    # Each with its place: `line 4, output: …` or `prices[3].input: …`.
    problems: list[str] = field(default_factory=list)
    # What is not taken over, on purpose.
    left_out: list[str] = field(default_factory=list)

    def take(self, place: str, read: Callable[[], Price]) -> None:
        """Adds what `read` returns, or says what is wrong with it."""
        try:
            price = read()
            _VALIDATOR.validate(price)
        except ValidationError as error:
            for violation in error.violations[:10]:
                elements = violation.proto.field.elements if violation.proto.field else []
                path = "".join(f".{element.field_name}" for element in elements)
                self.problems.append(f"{place}{path}: {violation.proto.message}")
        except ValueError as error:
            self.problems.append(f"{place}{error}" if str(error).startswith(".") else f"{place}: {error}")
        else:
            self.rows.append(Row(place, price))


def nano_usd(value: object, scale: int = 1) -> int:
    """Returns an amount in USD, times `scale`, in nano-USD, exactly.

    Raises:
        ValueError: it is no amount, is below zero, or is not a whole number of nano-USD.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise ValueError(f"{value!r} is not an amount")
    try:
        amount = Decimal(value.strip().removeprefix("$")) if isinstance(value, str) else Decimal(value)
    except InvalidOperation:
        raise ValueError(f"{value!r} is not an amount") from None
    if not amount:
        return 0
    if not amount.is_finite() or amount < 0 or amount.adjusted() > 9:
        raise ValueError(f"{value} is not an amount between 0 and 1000000 USD")
    if len(amount.as_tuple().digits) > MAX_DIGITS or amount.adjusted() < -MAX_DIGITS:
        raise ValueError(f"{str(amount)[:40]} has more than {MAX_DIGITS} digits")
    numerator, denominator = amount.as_integer_ratio()
    scaled, rest = divmod(numerator * scale * NANO_USD_PER_USD, denominator)
    if rest:
        raise ValueError(f"{value} is not exact in nano-USD per million tokens")
    return scaled


def read_json(text: str) -> Reading:
    """Reads our own JSON: `{"prices": [{"model": …, "input": "3.00", "output": "15.00"}]}`."""
    reading = Reading()
    value = decoded(text, reading)
    rows = value.get("prices") if isinstance(value, dict) else None
    if reading.problems:
        return reading
    if not isinstance(rows, list):
        reading.problems.append(
            'prices: a list is needed: {"prices": [{"model": …, "input": …, "output": …}]}'
        )
        return reading
    for number, row in enumerate(rows):
        reading.take(f"prices[{number}]", lambda row=row: _of_object(row))  # type: ignore[misc]
    return reading


def read_csv(text: str) -> Reading:
    """Reads CSV with a header line.

    Its columns are those of the JSON, `units.web_search`, and `above.200000.input` for tiers.
    """
    reading = Reading()
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        if "model" not in header or len(set(header)) != len(header):
            reading.problems.append("line 1: the header needs `model`, and each column once")
            return reading
        for cells in lines:
            place = f"line {lines.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                reading.problems.append(f"{place}: {len(cells)} columns, the header has {len(header)}")
                continue
            stated = {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
            reading.take(place, lambda stated=stated: _of_object(_nested(stated)))  # type: ignore[misc]
    except csv.Error as error:
        reading.problems.append(f"line {lines.line_num}: {error}")
    return reading


def decoded(text: str, reading: Reading) -> Any:
    """Returns a JSON value whose numbers are exact; None with a problem noted if it is none."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reading.problems.append(f"not JSON: {error}")
        return None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a number")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is stated twice")
    return found


def _of_object(row: object) -> Price:
    if not isinstance(row, dict):
        raise ValueError("an object is needed")
    _refuse_unknown(row, _FIELDS)
    price = Price(model=_text(row, "model"), provider_id=_text(row, "provider"), source=_text(row, "source"))
    if not price.model:
        raise ValueError(".model: is missing")
    if row.get("from"):
        price.effective_time.FromDatetime(_moment(_text(row, "from")))
    _set_rates(price, row, "")
    for number, tier in enumerate(_list(row, "tiers")):
        _add_tier(price, tier, f".tiers[{number}]")
    for kind, amount in _object(row, "units").items():
        price.unit_rates.add(kind=kind, nano_usd_per_thousand=_amount(amount, f".units.{kind}"))
    return price


def _add_tier(price: Price, tier: object, place: str) -> None:
    if not isinstance(tier, dict):
        raise ValueError(f"{place}: an object is needed")
    _refuse_unknown(tier, _TIER_FIELDS, place)
    threshold = tier.get("above_input_tokens")
    if type(threshold) is not int:
        raise ValueError(f"{place}.above_input_tokens: a whole number is needed")
    _set_rates(price.tiers.add(above_input_tokens=threshold), tier, place)


def _set_rates(target: Price | PriceTier, row: Mapping[str, Any], place: str) -> None:
    for kind in KINDS:
        stated = row.get(kind)
        if stated is None and kind in _NEEDED:
            raise ValueError(f"{place}.{kind}: is missing")
        name = "input" if stated is None else kind
        setattr(target, f"{kind}_nano_usd", _amount(row[name], f"{place}.{name}"))


def _amount(value: object, place: str) -> int:
    try:
        return nano_usd(value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _refuse_unknown(row: Mapping[str, Any], known: frozenset[str], place: str = "") -> None:
    for name in row:
        if name not in known:
            raise ValueError(f"{place}.{name}: is not a field; known are {', '.join(sorted(known))}")


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f".{name}: a text is needed")
    return (value or "").strip()


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row.get(name) or []
    if not isinstance(value, list):
        raise ValueError(f".{name}: a list is needed")
    return value


def _object(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = row.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f".{name}: an object is needed")
    return value


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f".from: {text!r} is not a time such as 2027-01-31T12:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _nested(stated: Mapping[str, str]) -> dict[str, Any]:
    """Puts the columns of tiers and units where JSON has them."""
    row: dict[str, Any] = {}
    tiers: dict[int, dict[str, Any]] = {}
    for name, cell in stated.items():
        if name.startswith("units."):
            row.setdefault("units", {})[name.removeprefix("units.")] = cell
        elif name.startswith("above."):
            threshold, _, kind = name.removeprefix("above.").partition(".")
            if not threshold.isdecimal():
                raise ValueError(f".{name}: is not `above.TOKENS.KIND`")
            tiers.setdefault(int(threshold), {"above_input_tokens": int(threshold)})[kind] = cell
        else:
            row[name] = cell
    return {**row, "tiers": list(tiers.values())} if tiers else row


def write_json(prices: Iterable[Price]) -> str:
    """Returns prices as `read_json` reads them."""
    rows = [_as_object(price) for price in prices]
    return json.dumps({"prices": rows}, indent=2, ensure_ascii=False)


def write_csv(prices: Sequence[Price]) -> str:
    """Returns prices as `read_csv` reads them."""
    rows = [dict(_flat(_as_object(price))) for price in prices]
    columns = dict.fromkeys(["model", "provider", "from", *KINDS])
    for row in rows:
        columns.update(dict.fromkeys(row))
    target = io.StringIO()
    writer = csv.DictWriter(target, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return target.getvalue()


def _as_object(price: Price) -> dict[str, Any]:
    row: dict[str, Any] = {"model": price.model}
    if price.provider_id:
        row["provider"] = price.provider_id
    row["from"] = price.effective_time.ToJsonString()
    if price.source:
        row["source"] = price.source
    row |= _rates(price)
    if price.tiers:
        row["tiers"] = [
            {"above_input_tokens": tier.above_input_tokens, **_rates(tier)} for tier in price.tiers
        ]
    if price.unit_rates:
        row["units"] = {kind: _usd(rate) for kind, rate in price_of(price).unit_rates.items()}
    return row


def _rates(price: Price | PriceTier) -> dict[str, str]:
    return {kind: _usd(getattr(price, f"{kind}_nano_usd")) for kind in KINDS}


def _usd(amount_nano_usd: int) -> str:
    whole, nano = divmod(amount_nano_usd, NANO_USD_PER_USD)
    return f"{whole}.{f'{nano:09}'.rstrip('0').ljust(2, '0')}"


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name == "tiers":
            for tier in value:
                yield from ((f"above.{tier['above_input_tokens']}.{kind}", tier[kind]) for kind in KINDS)
        elif name == "units":
            yield from ((f"units.{kind}", amount) for kind, amount in value.items())
        else:
            yield name, value
