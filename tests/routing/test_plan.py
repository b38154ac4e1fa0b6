"""The order of candidates, prices by date, and the catalog that both come from."""

import random
from collections import Counter
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from lurus.provider.v1 import provider_pb2
from lurus.usage.v1 import usage_pb2
from lurus_common.prices import PriceList
from lurus_common.settings import Settings
from lurus_routing import latency
from lurus_routing.breaker import FAILURES_IN_A_ROW
from lurus_routing.candidate import Candidate
from lurus_routing.catalog import Catalog, CatalogBuilder
from lurus_routing.health import BREAKER_OPEN, BREAKER_PROBED, Health, Permit
from lurus_routing.plan import Plan, make_plan

from .rig import ANTHROPIC, CHAT, CREDENTIAL_KEY, make_provider

SETTINGS = Settings(credential_key=CREDENTIAL_KEY)


def catalog_of(*providers: provider_pb2.Provider, **more: Any) -> Catalog:
    return CatalogBuilder(SETTINGS).take(
        provider_pb2.WatchProvidersResponse(is_snapshot=True, providers=providers, **more)
    )


def candidates(**providers: dict[str, Any]) -> list[Candidate]:
    rows = [make_provider(name, "http://127.0.0.1:1", **fields) for name, fields in providers.items()]
    return catalog_of(*rows).candidates(ANTHROPIC, "m")


class TestOrder:
    def test_lower_levels_come_first(self) -> None:
        matches = candidates(a={"level": 3}, b={"level": 1}, c={"level": 2})
        for session in ("", "s1", "s2"):
            plan = make_plan(matches, Health(), 0, session, random.random)
            assert [candidate.provider_id for candidate in plan.candidates] == ["b", "c", "a"]

    @pytest.mark.parametrize("has_session", [True, False])
    def test_weights_are_shares(self, has_session: bool) -> None:
        matches = candidates(a={"weight": 300}, b={}, c={"weight": 100})
        chance = random.Random(1)
        first = Counter(
            make_plan(matches, Health(), 0, f"s{number}" if has_session else "", chance.random)
            .candidates[0]
            .provider_id
            for number in range(5000)
        )
        assert first["a"] == pytest.approx(3000, rel=0.1)
        assert first["b"] == pytest.approx(1000, rel=0.15)

    def test_a_session_moves_only_if_its_credential_is_benched(self) -> None:
        matches = candidates(a={}, b={}, c={})
        health = Health()
        before = {
            s: make_plan(matches, health, 0, s, random.random).candidates[0].key for s in map(str, range(60))
        }
        benched = matches[0].key
        health.refuse_credential(benched[:2], 0, 401)
        for session, key in before.items():
            now = make_plan(matches, health, 1, session, random.random).candidates[0].key
            assert now != benched
            assert key in (now, benched)

    def test_skipped_ones_are_named_with_their_reason(self) -> None:
        matches = candidates(a={}, b={})
        health = Health()
        health.throttle(("a", "default"), 0, 30)
        plan = make_plan(matches, health, 1, "", random.random)
        assert [skip.reason for skip in plan.skipped] == ["benched: throttled by the provider"]
        assert not plan.is_last_resort


class TestShares:
    @pytest.mark.parametrize("has_session", [True, False])
    def test_credentials_share_their_providers_weight(self, has_session: bool) -> None:
        matches = candidates(a={"credentials": ("1", "2", "3")}, b={})
        chance = random.Random(2)
        first = Counter(
            make_plan(matches, Health(), 0, f"s{number}" if has_session else "", chance.random)
            .candidates[0]
            .key
            for number in range(6000)
        )
        assert first["b", "default", "m"] == pytest.approx(3000, rel=0.1)
        for credential in "123":
            assert first["a", credential, "m"] == pytest.approx(1000, rel=0.15)


class TestLatency:
    @staticmethod
    def health(**seconds: float) -> Health:
        health = Health()
        for candidate in candidates(**{name: {} for name in seconds}):
            permit = health.begin(candidate, 0)
            assert isinstance(permit, Permit)
            health.succeed(permit, 0, seconds[candidate.provider_id])
            health.end(permit)
        return health

    def order(self, matches: list[Candidate], health: Health, now: float, session: str = "") -> list[str]:
        plan = make_plan(matches, health, now, session, random.random, by_latency=True)
        return [candidate.provider_id for candidate in plan.candidates]

    def test_the_fastest_of_a_level_comes_first(self) -> None:
        health = self.health(a=3.0, b=0.5, c=1.0, d=0.1)
        matches = candidates(a={}, b={}, c={}, d={"level": 2})
        for session in ("", "s1", "s2"):
            assert self.order(matches, health, 1, session) == ["b", "c", "a", "d"]

    def test_about_as_fast_is_as_fast(self) -> None:
        health = self.health(a=1.0, b=1.2)
        firsts = {self.order(candidates(a={}, b={}), health, 1, f"s{number}")[0] for number in range(40)}
        assert firsts == {"a", "b"}

    def test_what_is_not_known_any_more_is_tried(self) -> None:
        health = self.health(a=0.5, b=5.0)
        matches = candidates(a={}, b={})
        assert self.order(matches, health, 10) == ["a", "b"]
        later = 10 * latency.HALF_LIFE_SECONDS
        assert {self.order(matches, health, later, f"s{number}")[0] for number in range(40)} == {"a", "b"}

    def test_newer_answers_count_more(self) -> None:
        mean = latency.Latency()
        mean.note(10.0, 0)
        mean.note(1.0, latency.HALF_LIFE_SECONDS)
        assert mean.mean(latency.HALF_LIFE_SECONDS) == pytest.approx((5 + 1) / 1.5)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Candidate], Health, float]:
    """Providers in any state of health, at some moment."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True))
    fields = {
        name: {
            "level": draw(st.integers(1, 3)),
            "weight": draw(st.integers(1, 500)),
            "credentials": ("x", "y")[: draw(st.integers(1, 2))],
            "dialects": draw(st.sampled_from([(ANTHROPIC,), (CHAT,)])),
        }
        for name in names
    }
    matches, health, now = candidates(**fields), Health(), 0.0
    steps = st.tuples(
        st.sampled_from(matches),
        st.sampled_from(["dies", "dies", "fail", "answer", "401", "429"]),
        st.floats(0, 9),
    )
    for candidate, what, seconds in draw(st.lists(steps, max_size=40)):
        now += seconds
        permit = health.begin(candidate, now, is_alone=True)
        if isinstance(permit, str):
            continue
        if what in ("fail", "dies"):
            for _ in range(FAILURES_IN_A_ROW if what == "dies" else 1):
                health.fail(permit, now)
        elif what == "answer":
            health.succeed(permit, now, seconds)
        else:
            bench = health.refuse_credential if what == "401" else health.throttle
            bench(candidate.key[:2], now, 30)
        health.end(permit)
    return matches, health, now


class TestAnyWorld:
    @settings(max_examples=60, deadline=None, database=None)
    @given(
        world=worlds(),
        session=st.sampled_from(["", "s1", "s2"]),
        by_latency=st.booleans(),
        seed=st.integers(0, 9),
    )
    def test_the_order_follows_from_what_comes_in(
        self, world: tuple[list[Candidate], Health, float], session: str, by_latency: bool, seed: int
    ) -> None:
        matches, health, now = world

        def plan(given: list[Candidate]) -> Plan:
            return make_plan(given, health, now, session, random.Random(seed).random, by_latency=by_latency)

        made = plan(matches)
        assert plan(matches) == made
        if session:
            shuffled = random.Random(seed).sample(matches, len(matches))
            assert [row.key for row in plan(shuffled).candidates] == [row.key for row in made.candidates]
        # Nobody is lost, nobody asked twice.
        everybody = [*made.candidates, *(skip.candidate for skip in made.skipped)]
        assert sorted(row.key for row in everybody) == sorted(row.key for row in matches)
        assert all(skip.reason for skip in made.skipped)
        # Levels, then relays, among the healthy; then those in reserve.
        ranks = [(row.key in made.reserve, row.level, not row.is_relay) for row in made.candidates]
        assert ranks == sorted(ranks)
        healthy = [row for row in made.candidates if row.key not in made.reserve]
        assert all(not health.skip_reason(row, now, made.is_last_resort) for row in healthy)

    @settings(max_examples=60, deadline=None, database=None)
    @given(world=worlds())
    def test_no_more_than_half_are_given_up_for_their_breakers(
        self, world: tuple[list[Candidate], Health, float]
    ) -> None:
        matches, health, now = world
        made = make_plan(matches, health, now, "s", random.random)
        asked = {row.provider_id for row in made.candidates}
        given_up = {
            skip.candidate.provider_id
            for skip in made.skipped
            if skip.reason in (BREAKER_OPEN, BREAKER_PROBED)
        }
        provider_count = len({row.provider_id for row in matches})
        assert provider_count < 2 or len(given_up - asked) <= provider_count // 2


class TestPrices:
    @staticmethod
    def price(price_id: str, model: str, day: int, provider_id: str = "") -> provider_pb2.Price:
        return provider_pb2.Price(
            price_id=price_id,
            model=model,
            provider_id=provider_id,
            effective_time=Timestamp(seconds=day * 86_400),
        )

    def test_the_newest_one_in_effect_counts(self) -> None:
        prices = PriceList(
            [self.price("new", "m", 20), self.price("old", "m", 10), self.price("next", "m", 30)]
        )

        def found(day: float) -> str:
            price = prices.find("p", "m", "alias", int(day * 86_400) * 10**9)
            return price.price_id if price else ""

        assert [found(day) for day in (9.9, 10, 19.9, 20, 29.9, 31)] == [
            "",
            "old",
            "old",
            "new",
            "new",
            "next",
        ]

    def test_the_closest_one_counts(self) -> None:
        given = [
            self.price("everybody's, by alias", "alias", 1),
            self.price("everybody's", "up", 1),
            self.price("its own, by alias", "alias", 1, "p"),
            self.price("its own", "up", 1, "p"),
        ]
        for count in range(4, 0, -1):
            price = PriceList(given[:count]).find("p", "up", "alias", 10**18)
            assert price is not None and price.price_id == given[count - 1].price_id
        assert PriceList(given[2:]).find("q", "up", "alias", 10**18) is None


class TestCatalog:
    def test_changes_are_merged(self) -> None:
        builder = CatalogBuilder(SETTINGS)
        one, two = (make_provider(name, "http://127.0.0.1:1") for name in ("one", "two"))
        builder.take(provider_pb2.WatchProvidersResponse(is_snapshot=True, providers=[one]))
        both = builder.take(provider_pb2.WatchProvidersResponse(revision=7, providers=[two]))
        assert both.revision == 7
        assert [candidate.provider_id for candidate in both.candidates(CHAT, "m")] == ["one", "two"]
        left = builder.take(provider_pb2.WatchProvidersResponse(deleted_provider_ids=["one", "unknown"]))
        assert [candidate.provider_id for candidate in left.candidates(CHAT, "m")] == ["two"]
        assert builder.take(provider_pb2.WatchProvidersResponse(is_snapshot=True)).candidates(CHAT, "m") == []

    def test_what_is_disabled_or_cannot_be_opened_is_left_out(self) -> None:
        provider = make_provider("p", "http://127.0.0.1:1", credentials=("good", "off", "broken"))
        provider.credentials[1].is_disabled = True
        provider.credentials[2].sealed_secret = provider.credentials[0].sealed_secret
        disabled = make_provider("q", "http://127.0.0.1:1", is_disabled=True)
        found = catalog_of(provider, disabled).candidates(ANTHROPIC, "m")
        assert [candidate.credential_id for candidate in found] == ["good"]
        assert "sk-upstream" not in repr(found)

    def test_hidden_models_are_not_listed_and_work(self) -> None:
        models = [
            provider_pb2.Model(model_id=name, is_hidden=name == "hidden") for name in ("shown", "hidden")
        ]
        catalog = catalog_of(make_provider("p", "http://127.0.0.1:1", dialects=[ANTHROPIC]), models=models)
        assert catalog.served_names() == {"shown": {usage_pb2.DIALECT_ANTHROPIC}}
        assert catalog.candidates(ANTHROPIC, "hidden")

    def test_timers_of_a_provider_replace_the_defaults(self) -> None:
        limits = provider_pb2.ProviderLimits(max_concurrency=3)
        limits.idle_timeout.FromMilliseconds(1500)
        [candidate] = catalog_of(make_provider("p", "http://h:1/base/", limits=limits)).candidates(
            ANTHROPIC, "m"
        )
        assert (candidate.idle_seconds, candidate.max_concurrency) == (1.5, 3)
        assert candidate.first_event_seconds == SETTINGS.upstream_first_event_seconds
        assert candidate.base_url == "http://h:1/base"
