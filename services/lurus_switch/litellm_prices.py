"""LiteLLM's `model_prices_and_context_window.json` as a list of prices.

Its amounts are USD per token. What it states beside the standard rates (batch,
flex and priority rates, images, audio) is left out and named.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lurus.provider.v1.provider_pb2 import Price, PriceTier
from lurus_common.matching import allows
from lurus_switch.price_files import Reading, decoded, nano_usd

SAMPLE = "sample_spec"
_MILLION = 1_000_000
_THOUSAND = 1_000
# Each rate of ours by the names that may state it, the first of them that is there.
_NAMES: Mapping[str, Sequence[str]] = {
    "input": ("input_cost_per_token",),
    "cache_read": ("cache_read_input_token_cost", "input_cost_per_token"),
    "cache_write_5m": ("cache_creation_input_token_cost", "input_cost_per_token"),
    "cache_write_30m": ("cache_creation_input_token_cost", "input_cost_per_token"),
    "cache_write_1h": (
        "cache_creation_input_token_cost_above_1hr",
        "cache_creation_input_token_cost",
        "input_cost_per_token",
    ),
    "cache_write_12h": (
        "cache_creation_input_token_cost_above_1hr",
        "cache_creation_input_token_cost",
        "input_cost_per_token",
    ),
    "output": ("output_cost_per_token",),
}
_BASE = frozenset(name for names in _NAMES.values() for name in names)
_TIER = re.compile(r"(?P<name>[a-z_0-9]+)_above_(?P<thousands>[0-9]{1,5})k_tokens\Z")
_SEARCH = "search_context_cost_per_query"
_SEARCH_SIZE = "search_context_size_medium"


def looks_like_litellm(value: object) -> bool:
    """Whether decoded JSON is a map from models to what LiteLLM says of them."""
    return isinstance(value, dict) and any(
        isinstance(entry, dict) and ("litellm_provider" in entry or "input_cost_per_token" in entry)
        for entry in value.values()
    )


def read_litellm(text: str, patterns: Sequence[str] = ()) -> Reading:
    """Reads LiteLLM's map.

    Args:
        patterns: only models that one of these names, each exact or with one `*`; all if there are none.
    """
    reading = Reading()
    value = decoded(text, reading)
    if reading.problems:
        return reading
    if not isinstance(value, dict):
        reading.problems.append("a map from models to their prices is needed")
        return reading
    for model, entry in value.items():
        if model == SAMPLE or (patterns and not allows(patterns, model)):
            continue
        if not isinstance(entry, dict) or not _is_by_token(entry):
            reading.left_out.append(f"{model}: it is not priced by input and output tokens")
            continue
        reading.take(model, lambda model=model, entry=entry: _price(model, entry))  # type: ignore[misc]
        others = sorted(name for name in entry if "cost" in name and not _is_known(name))
        if others:
            reading.left_out.append(f"{model}: {', '.join(others)}")
    return reading


def _is_by_token(entry: Mapping[str, Any]) -> bool:
    return entry.get("input_cost_per_token") is not None and entry.get("output_cost_per_token") is not None


def _is_known(name: str) -> bool:
    tier = _TIER.match(name)
    return name in _BASE or name == _SEARCH or (tier is not None and tier["name"] in _BASE)


def _price(model: str, entry: Mapping[str, Any]) -> Price:
    price = Price(model=model, source="LiteLLM's price map")
    _set_rates(price, entry, {})
    for thousands, stated in sorted(_tiers(entry).items()):
        tier = price.tiers.add(above_input_tokens=thousands * 1000)
        _set_rates(tier, entry, stated)
    search = entry.get(_SEARCH)
    if isinstance(search, dict) and search.get(_SEARCH_SIZE) is not None:
        rate = _amount(search[_SEARCH_SIZE], f"{_SEARCH}.{_SEARCH_SIZE}", _THOUSAND)
        price.unit_rates.add(kind="web_search", nano_usd_per_thousand=rate)
    return price


def _tiers(entry: Mapping[str, Any]) -> dict[int, dict[str, str]]:
    """By threshold in thousands: the name of each rate that it states, by the name of the base rate."""
    found: dict[int, dict[str, str]] = {}
    for name, value in entry.items():
        match = _TIER.match(name)
        if match and match["name"] in _BASE and value is not None:
            found.setdefault(int(match["thousands"]), {})[match["name"]] = name
    return found


def _set_rates(target: Price | PriceTier, entry: Mapping[str, Any], stated: Mapping[str, str]) -> None:
    """Sets all rates; a tier's are those that it states, else what the base states for the same."""
    for kind, names in _NAMES.items():
        base = next(name for name in names if entry.get(name) is not None)
        name = stated.get(base, base)
        setattr(target, f"{kind}_nano_usd", _amount(entry[name], name, _MILLION))


def _amount(value: object, name: str, scale: int) -> int:
    try:
        return nano_usd(value, scale)
    except ValueError as error:
        raise ValueError(f".{name}: {error}") from None
