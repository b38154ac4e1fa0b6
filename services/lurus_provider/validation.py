"""What a provider, a model and a price must be, beyond the rules written in the contract.

Each function changes the message in place into its one spelling, so that the
same content sent twice is the same bytes.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from lurus.provider.v1.provider_pb2 import Model, Price, Provider, ProviderQuirks
from lurus_common.addresses import BaseUrl, parse_base_url
from lurus_common.errors import InvalidRequest
from lurus_common.matching import check_mappings, check_patterns
from lurus_provider.credentials import DEFAULT_CREDENTIAL_ID, PARAM

MAX_PROVIDER_BYTES = 1024 * 1024
MAX_LIMIT_SECONDS = 86_400
_SECRET = re.compile(r"[\x21-\x7e]*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


def normalise_provider(provider: Provider) -> None:
    """Drops what only the service sets, and names the credential without a name."""
    for name in ("create_time", "update_time"):
        provider.ClearField(name)
    for credential in provider.credentials:
        credential.credential_id = credential.credential_id or DEFAULT_CREDENTIAL_ID
        credential.ClearField("last_four")
        credential.ClearField("sealed_secret")


def normalise_model(model: Model) -> None:
    """Drops what only the service sets; times are kept to the microsecond."""
    for name in ("create_time", "update_time"):
        model.ClearField(name)
    if model.HasField("release_time"):
        _truncate(model.release_time, "model.release_time")


def normalise_price(price: Price) -> None:
    """Drops what only the service sets; times are kept to the microsecond, tiers and units in order."""
    price.ClearField("create_time")
    price.tiers.sort(key=lambda tier: tier.above_input_tokens)
    price.unit_rates.sort(key=lambda rate: rate.kind)
    if price.HasField("effective_time"):
        _truncate(price.effective_time, "price.effective_time")


def check_base_url(provider: Provider, http_hosts: frozenset[str]) -> BaseUrl:
    """Puts the base URL into its one spelling and returns it.

    Raises:
        InvalidRequest: it may not be called.
    """
    url = parse_base_url(provider.base_url, http_hosts, "provider.base_url")
    provider.base_url = str(url)
    return url


def check_provider(provider: Provider) -> None:
    """Checks a whole provider, except its base URL.

    Raises:
        InvalidRequest: names the field.
    """
    _check_credentials(provider)
    check_patterns(provider.supported_models, "provider.supported_models")
    check_mappings(provider.model_mappings, "provider.model_mappings")
    for field, value in provider.limits.ListFields():
        if isinstance(value, Duration):
            _check_limit(value, f"provider.limits.{field.name}")
    _check_params(provider.quirks)
    _refuse_control([provider.display_name], "provider.display_name")
    _refuse_control(provider.tags, "provider.tags")
    _refuse_control(provider.supported_models, "provider.supported_models")
    _refuse_control(_texts(provider.model_mappings), "provider.model_mappings")
    if provider.ByteSize() > MAX_PROVIDER_BYTES:
        raise InvalidRequest(
            f"the provider exceeds {MAX_PROVIDER_BYTES} bytes",
            param="provider",
            maximum_bytes=MAX_PROVIDER_BYTES,
        )


def check_model(model: Model) -> None:
    """Checks a whole model.

    Raises:
        InvalidRequest: names the field.
    """
    _refuse_control([model.display_name], "model.display_name")
    _refuse_control([model.owned_by], "model.owned_by")


def check_price(price: Price) -> None:
    """Checks a whole price.

    Raises:
        InvalidRequest: names the field.
    """
    _refuse_control([price.model], "price.model")
    _refuse_control([price.provider_id], "price.provider_id")
    _refuse_control([price.source], "price.source")
    thresholds = [tier.above_input_tokens for tier in price.tiers]
    if len(set(thresholds)) != len(thresholds):
        raise InvalidRequest("two tiers begin above the same number of tokens", param="price.tiers")
    kinds = [rate.kind for rate in price.unit_rates]
    if len(set(kinds)) != len(kinds):
        raise InvalidRequest("a kind of units has two rates", param="price.unit_rates")


def _check_credentials(provider: Provider) -> None:
    names = [credential.credential_id for credential in provider.credentials]
    if not names:
        raise InvalidRequest("a provider needs at least one credential", param=PARAM)
    if len(set(names)) != len(names):
        raise InvalidRequest("two credentials have the same credential_id", param=PARAM)
    if not all(_SECRET.fullmatch(credential.secret) for credential in provider.credentials):
        raise InvalidRequest("a secret may hold printable ASCII only, without spaces", param=PARAM)


def _check_params(quirks: ProviderQuirks) -> None:
    param = "provider.quirks.set_params"
    names = [field.name for field in quirks.set_params]
    if len({*names, *quirks.dropped_params}) != len(names) + len(set(quirks.dropped_params)):
        raise InvalidRequest("a field is set twice, or both set and dropped", param=param)
    for field in quirks.set_params:
        try:
            msgspec.json.decode(field.json, type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            raise InvalidRequest(f"the value of {field.name} is not JSON", param=param) from None
        # Line ends and other space would be sent with every request.
        field.json = field.json.strip(" \t\r\n")


def _check_limit(limit: Duration, param: str) -> None:
    nanoseconds = limit.seconds * 10**9 + limit.nanos
    is_valid = abs(limit.nanos) < 10**9 and limit.seconds * limit.nanos >= 0
    if not is_valid or not 0 < nanoseconds <= MAX_LIMIT_SECONDS * 10**9:
        raise InvalidRequest(f"{param} must be above 0 s and at most {MAX_LIMIT_SECONDS} s", param=param)


def _truncate(time: Timestamp, param: str) -> None:
    try:
        found = time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        found = None
    if found is None or found < _EARLIEST:
        raise InvalidRequest(f"{param} must be between 1970 and 9999", param=param)
    time.FromDatetime(found)


def _texts(messages: Iterable[Message]) -> Iterable[str]:
    for message in messages:
        yield from (value for _, value in message.ListFields() if isinstance(value, str))


def _refuse_control(texts: Iterable[str], param: str) -> None:
    if any(_CONTROL.search(text) for text in texts):
        raise InvalidRequest(f"{param} holds a control character", param=param)
