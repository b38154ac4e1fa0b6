"""What there is to choose from: providers, models and prices, in memory.

A catalog never changes; `CatalogBuilder` makes a new one when the provider
service tells of a change.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from lurus.provider.v1 import provider_pb2
from lurus.provider.v1.provider_pb2 import (
    ROUTING_POLICY_LEAST_LATENCY,
    ROUTING_POLICY_UNSPECIFIED,
    Model,
    Price,
    Provider,
    ProviderQuirks,
    WatchProvidersResponse,
)
from lurus.routing.v1.routing_pb2 import CandidateExplanation
from lurus.usage.v1 import usage_pb2
from lurus_common.matching import Match, ModelRules
from lurus_common.money import PPM
from lurus_common.prices import PriceList
from lurus_common.secrets import SealBroken, unseal
from lurus_common.settings import Settings
from lurus_dialects.dialect import Dialect
from lurus_dialects.params import Param
from lurus_dialects.translation import DIALECTS, Target
from lurus_routing.candidate import Candidate

log = logging.getLogger(__name__)

_A, _C, _R = usage_pb2.DIALECT_ANTHROPIC, usage_pb2.DIALECT_OPENAI_CHAT, usage_pb2.DIALECT_OPENAI_RESPONSES
_BY_NUMBER: Mapping[int, Dialect] = {number: dialect for dialect, number in DIALECTS.items()}
# In which dialect a provider of several is asked for a client of another one, or of none: where
# more of a request and of its thinking survives comes first.
_PREFERENCES: Mapping[int, tuple[int, ...]] = {
    usage_pb2.DIALECT_UNSPECIFIED: (_A, _R, _C),
    usage_pb2.DIALECT_ANTHROPIC: (_A, _R, _C),
    usage_pb2.DIALECT_OPENAI_CHAT: (_C, _R, _A),
    usage_pb2.DIALECT_OPENAI_RESPONSES: (_R, _A, _C),
}

MAX_REMEMBERED_MATCHES = 10_000
MAX_TIMER_SECONDS = 86_400.0
DEFAULT_LEVEL = 1
DEFAULT_WEIGHT = 100
_UNKNOWN_MODEL = Model()
# Of a match that none was needed for.
_NO_RULE = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """Whom to ask for a list of models, and how."""

    provider_id: str
    base_url: str
    dialect: Dialect
    secret: str = field(repr=False)


class Catalog:
    """A whole set of providers, models and prices, with the credentials opened."""

    def __init__(
        self,
        providers: Iterable[Provider],
        models: Iterable[Model],
        prices: Iterable[Price],
        settings: Settings,
        revision: int = 0,
        before: "Catalog | None" = None,
        unchanged: frozenset[str] = frozenset(),
    ) -> None:
        """Makes a catalog; of the one `before` it, what has not changed is kept and not made anew.

        Args:
            providers: the same object as in `before` is the same provider.
            settings: of the credentials' seals, and the defaults of times.
            unchanged: of `models` and `prices`, what is as it was in `before`.
        """
        self.revision = revision
        self.models = {model.model_id: model for model in models}
        self.prices: PriceList = before.prices if before and "prices" in unchanged else PriceList(prices)
        self._settings = settings
        enabled = [provider for provider in providers if not provider.is_disabled]
        self._providers = sorted(enabled, key=lambda provider: (provider.level or 1, provider.provider_id))
        self._by_id = {provider.provider_id: provider for provider in enabled}
        self._changed = self._different(before)
        self._rules: dict[str, ModelRules] = {}
        self._secrets: dict[str, Mapping[str, str]] = {}
        for provider in enabled:
            name = provider.provider_id
            is_same = before is not None and name not in self._changed
            self._rules[name] = before._rules[name] if before and is_same else ModelRules(provider)
            self._secrets[name] = (
                before._secrets[name] if before and is_same else _open_all(provider, settings)
            )
        self._matches: OrderedDict[tuple[int, str], list[Candidate]] = OrderedDict()
        # Of the catalog before, from which those of changed providers have to be taken out.
        self._old_matches = before._matches if before and "models" in unchanged else {}
        self._served: dict[str, set[int]] | None = None

    @property
    def providers(self) -> list[Provider]:
        """Enabled providers by level, then id."""
        return self._providers

    def probe_target(self, provider_id: str, credential_id: str) -> ProbeTarget | None:
        """Returns how a credential can be probed; None if it is gone, or its provider is not to be probed."""
        secret = self._secrets.get(provider_id, {}).get(credential_id)
        provider = self._by_id.get(provider_id)
        if secret is None or provider is None or provider.limits.no_probes:
            return None
        dialect = _BY_NUMBER[provider.dialects[0]]
        return ProbeTarget(provider_id, provider.base_url.rstrip("/"), dialect, secret)

    def credentials(self) -> dict[tuple[str, str], CandidateExplanation]:
        """Returns what is known of each enabled credential, whatever the model."""
        return {
            (provider.provider_id, credential_id): CandidateExplanation(
                provider_id=provider.provider_id,
                credential_id=credential_id,
                level=provider.level or DEFAULT_LEVEL,
                weight=provider.weight or DEFAULT_WEIGHT,
                tags=sorted(provider.tags),
                max_concurrency=max(provider.limits.max_concurrency, 0),
            )
            for provider in self._providers
            for credential_id in self._secrets[provider.provider_id]
        }

    def goes_by_latency(self, model: str) -> bool:
        """Whether the fastest candidate of a level is asked first, rather than by weight."""
        known = self.models.get(model)
        policy = known.routing_policy if known is not None else ROUTING_POLICY_UNSPECIFIED
        if policy == ROUTING_POLICY_UNSPECIFIED:
            return self._settings.routing_policy == "least_latency"
        return policy == ROUTING_POLICY_LEAST_LATENCY

    def thinks_first(self, model: str) -> bool:
        """Whether a model thinks before its first event, also unasked."""
        known = self.models.get(model)
        return known is not None and known.thinks_first

    def candidates(self, dialect: int, model: str) -> list[Candidate]:
        """Returns every enabled credential that serves `model`.

        Args:
            dialect: the client's. A provider that speaks it is asked in it, another one in a dialect
                of its own; 0 stands for a client of no dialect.
            model: as the client names it.
        """
        key = (dialect, model)
        found = self._matches.get(key)
        if found is None:
            found = self._matches[key] = self._find(dialect, model)
            if len(self._matches) > MAX_REMEMBERED_MATCHES:
                self._matches.popitem(last=False)
        return found

    def _find(self, dialect: int, model: str) -> list[Candidate]:
        old = self._old_matches.get((dialect, model))
        if old is None:
            return [
                candidate for provider in self._providers for candidate in self._of(provider, dialect, model)
            ]
        found = [candidate for candidate in old if candidate.provider_id not in self._changed]
        for name in self._changed & self._by_id.keys():
            found += self._of(self._by_id[name], dialect, model)
        # As `_providers` are; of one provider they stay in their order.
        found.sort(key=lambda candidate: (candidate.level, candidate.provider_id))
        return found

    def _different(self, before: "Catalog | None") -> set[str]:
        """Returns the names of providers that are new, gone or other ones than before."""
        old, new = before._by_id if before else {}, self._by_id
        return {name for name in old.keys() | new.keys() if old.get(name) is not new.get(name)}

    def served_names(self) -> dict[str, set[int]]:
        """Returns the names that clients can ask for, with the dialects in which somebody serves them.

        Hidden models work and are not among them.
        """
        if self._served is None:
            self._served = self._find_served()
        return self._served

    def _find_served(self) -> dict[str, set[int]]:
        by_name: dict[str, list[Provider]] = {name: [] for name in self.models}
        # Whoever has exact names alone serves no other ones.
        open_ended = []
        for provider in self._providers:
            names = _exact_names(provider)
            if not names or len(names) < len(provider.supported_models) + len(provider.model_mappings):
                open_ended.append(provider)
            for name in names:
                by_name.setdefault(name, []).append(provider)
        served: dict[str, set[int]] = {}
        for name in sorted(by_name.keys() - {name for name, model in self.models.items() if model.is_hidden}):
            for provider in (*by_name[name], *open_ended):
                if self._rules[provider.provider_id].match(name) and self._secrets[provider.provider_id]:
                    served.setdefault(name, set()).update(provider.dialects)
        return served

    def _of(self, provider: Provider, dialect: int, model: str) -> list[Candidate]:
        match = self._rules[provider.provider_id].match(model)
        if match is None:
            return []
        is_relay = dialect in provider.dialects
        targets = self._targets(provider, [dialect] if is_relay else _PREFERENCES[dialect], model, match)
        secrets = self._secrets[provider.provider_id] if targets else {}
        return [
            self._candidate(provider, credential_id, secrets[credential_id], match, targets, is_relay)
            for credential_id in secrets
        ]

    def _targets(
        self, provider: Provider, dialects: Iterable[int], model: str, match: Match
    ) -> tuple[Target, ...]:
        known = self.models.get(model) or self.models.get(match.upstream_model) or _UNKNOWN_MODEL
        return tuple(
            Target(
                dialect=_BY_NUMBER[dialect],
                upstream_model=match.upstream_model,
                provider_id=provider.provider_id,
                quirks=provider.quirks,
                max_output_tokens=known.max_output_tokens,
                efforts=tuple(known.efforts),
            )
            for dialect in dialects
            if dialect in provider.dialects
        )

    def _candidate(
        self,
        provider: Provider,
        credential_id: str,
        secret: str,
        match: Match,
        targets: tuple[Target, ...],
        is_relay: bool,
    ) -> Candidate:
        limits, settings = provider.limits, self._settings
        return Candidate(
            provider_id=provider.provider_id,
            credential_id=credential_id,
            secret=secret,
            base_url=provider.base_url.rstrip("/"),
            upstream_model=match.upstream_model,
            rule=match.rule,
            level=provider.level or DEFAULT_LEVEL,
            weight=provider.weight or DEFAULT_WEIGHT,
            share=(provider.weight or DEFAULT_WEIGHT) / len(self._secrets[provider.provider_id]),
            tags=frozenset(provider.tags),
            connect_seconds=_seconds(limits.connect_timeout, settings.upstream_connect_seconds),
            first_event_seconds=_seconds(limits.first_event_timeout, settings.upstream_first_event_seconds),
            thinking_seconds=_seconds(limits.thinking_timeout, settings.upstream_thinking_seconds),
            idle_seconds=_seconds(limits.idle_timeout, settings.upstream_idle_seconds),
            stream_total_seconds=_seconds(limits.stream_total_timeout, settings.stream_total_seconds),
            unary_total_seconds=_seconds(limits.unary_total_timeout, settings.unary_total_seconds),
            has_stream_options=not provider.quirks.no_stream_options,
            cost_multiplier_ppm=provider.cost_multiplier_ppm or PPM,
            max_concurrency=limits.max_concurrency,
            key=(provider.provider_id, credential_id, match.upstream_model),
            targets=targets,
            is_relay=is_relay,
            wants_streams=provider.quirks.wants_streams,
            is_drained=provider.on_disconnect == provider_pb2.ON_DISCONNECT_DRAIN,
            params=_params(provider.quirks),
            extra_endpoints=frozenset(provider.extra_endpoints),
        )

    def holder(
        self, provider_id: str, credential_id: str, dialect: int, upstream_model: str
    ) -> Candidate | None:
        """Returns an enabled credential of a provider that speaks `dialect`, whatever models it serves."""
        provider = next((found for found in self._providers if found.provider_id == provider_id), None)
        secret = self._secrets.get(provider_id, {}).get(credential_id)
        if provider is None or secret is None or dialect not in provider.dialects:
            return None
        match = Match(upstream_model, "", _NO_RULE)
        targets = self._targets(provider, [dialect], upstream_model, match)
        return self._candidate(provider, credential_id, secret, match, targets, is_relay=True)

    def batches_for(self, account_id: str) -> Candidate | None:
        """Returns where an account has its batches: at the only provider that names it; None if none does."""
        named = [provider for provider in self._providers if account_id in provider.batch_account_ids]
        if len(named) != 1:
            return None
        provider_id = named[0].provider_id
        # A batch is known to the account of the credential that made it: always the same one.
        credential_id = next(iter(self._secrets[provider_id]), "")
        return self.holder(provider_id, credential_id, usage_pb2.DIALECT_ANTHROPIC, "")


class CatalogBuilder:
    """Follows the provider service: takes its messages, gives out catalogs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._providers: dict[str, Provider] = {}
        self._models: dict[str, Model] = {}
        self._prices: dict[str, Price] = {}
        self._revision = 0
        self._last: Catalog | None = None

    def capture(self) -> Callable[[], bytes]:
        """Returns what gives the whole set as one serialised `WatchProvidersResponse`, credentials sealed."""
        rows = [*self._providers.values()], [*self._models.values()], [*self._prices.values()]
        revision = self._revision

        def serialise() -> bytes:
            providers, models, prices = rows
            whole = WatchProvidersResponse(
                revision=revision, is_snapshot=True, providers=providers, models=models, prices=prices
            )
            return whole.SerializeToString()

        return serialise

    def take(self, change: WatchProvidersResponse) -> Catalog:
        """Returns the catalog after a message of `WatchProviders`."""
        self._revision = change.revision
        if change.is_snapshot:
            self._providers, self._models, self._prices = {}, {}, {}
        self._providers.update({provider.provider_id: provider for provider in change.providers})
        self._models.update({model.model_id: model for model in change.models})
        self._prices.update({price.price_id: price for price in change.prices})
        _remove(self._providers, change.deleted_provider_ids)
        _remove(self._models, change.deleted_model_ids)
        _remove(self._prices, change.deleted_price_ids)
        told = {
            "models": change.is_snapshot or change.models or change.deleted_model_ids,
            "prices": change.is_snapshot or change.prices or change.deleted_price_ids,
        }
        self._last = Catalog(
            self._providers.values(),
            self._models.values(),
            self._prices.values(),
            self._settings,
            change.revision,
            before=self._last,
            unchanged=frozenset(name for name, is_told in told.items() if not is_told),
        )
        return self._last


def dialect_name(dialect: int) -> str:
    """Returns `anthropic` for `DIALECT_ANTHROPIC`, and so on."""
    return usage_pb2.Dialect.Name(usage_pb2.Dialect.ValueType(dialect)).removeprefix("DIALECT_").lower()


def _remove(rows: dict[str, Provider] | dict[str, Model] | dict[str, Price], ids: Iterable[str]) -> None:
    for name in ids:
        rows.pop(name, None)


def _open_all(provider: Provider, settings: Settings) -> Mapping[str, str]:
    """Returns the enabled credentials' secrets by id; one that cannot be opened is left out, loudly."""
    key = settings.credential_key_bytes()
    secrets = {}
    for credential in provider.credentials:
        if credential.is_disabled:
            continue
        context = f"{provider.provider_id}|{credential.credential_id}"
        try:
            secrets[credential.credential_id] = unseal(key, credential.sealed_secret, context)
        except SealBroken as error:
            log.error("credential %s is left out: %s", context, error)
    return secrets


def _exact_names(provider: Provider) -> list[str]:
    names = [*provider.supported_models, *(mapping.model for mapping in provider.model_mappings)]
    return [name for name in names if "*" not in name]


def _params(quirks: ProviderQuirks) -> tuple[Param, ...]:
    left_out = [Param(name, None) for name in quirks.dropped_params]
    return (*left_out, *(Param(field.name, field.json.encode()) for field in quirks.set_params))


def _seconds(duration: Duration, default: float) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    return min(seconds, MAX_TIMER_SECONDS) if seconds > 0 else default
