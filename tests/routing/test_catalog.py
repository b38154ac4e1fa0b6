"""A catalog that is made of the one before it: the same as one made of everything, and with less work."""

from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lurus.provider.v1.provider_pb2 import Model, Price, Provider, WatchProvidersResponse
from lurus_common.settings import Settings
from lurus_routing.catalog import Catalog, CatalogBuilder

from .rig import ANTHROPIC, CHAT, CREDENTIAL_KEY, make_provider

SETTINGS = Settings(credential_key=CREDENTIAL_KEY)
NAMES = ("a", "b", "c", "d")
ASKED = ("m", "m-1", "x", "unheard-of")
MANY = 60

providers = st.builds(
    lambda name, url, **fields: make_provider(name, f"http://127.0.0.1:{url}", **fields),
    st.sampled_from(NAMES),
    st.integers(1, 3),
    level=st.integers(1, 2),
    is_disabled=st.booleans(),
    supported_models=st.lists(st.sampled_from(("m", "m-*", "x")), max_size=2, unique=True),
    dialects=st.sampled_from(([ANTHROPIC], [CHAT], [ANTHROPIC, CHAT])),
    credentials=st.sampled_from((("one",), ("one", "two"))),
)
models = st.builds(
    Model, model_id=st.sampled_from(ASKED), max_output_tokens=st.integers(1, 3), is_hidden=st.booleans()
)
changes = st.builds(
    WatchProvidersResponse,
    is_snapshot=st.sampled_from((False, False, False, True)),
    providers=st.lists(providers, max_size=2, unique_by=lambda provider: provider.provider_id),
    deleted_provider_ids=st.lists(st.sampled_from(NAMES), max_size=1),
    models=st.lists(models, max_size=1),
    deleted_model_ids=st.lists(st.sampled_from(ASKED), max_size=1),
    prices=st.lists(st.builds(Price, price_id=st.sampled_from(NAMES), model=st.just("m")), max_size=1),
)


def _told(catalog: Catalog) -> Any:
    """What can be asked of a catalog; secrets are in the candidates."""
    asked = {
        (dialect, model): catalog.candidates(dialect, model)
        for dialect in (ANTHROPIC, CHAT)
        for model in ASKED
    }
    return asked, catalog.served_names(), catalog.credentials(), catalog.providers


def _kept(change: WatchProvidersResponse, rows: dict[str, dict[str, Any]]) -> None:
    """Does with plain rows what a change says."""
    if change.is_snapshot:
        for known in rows.values():
            known.clear()
    rows["providers"] |= {row.provider_id: row for row in change.providers}
    rows["models"] |= {row.model_id: row for row in change.models}
    for name in change.deleted_provider_ids:
        rows["providers"].pop(name, None)
    for name in change.deleted_model_ids:
        rows["models"].pop(name, None)


class TestChanges:
    @settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
    @given(st.lists(st.tuples(changes, st.booleans()), min_size=2, max_size=6))
    def test_after_any_changes_it_is_what_a_new_one_would_be(
        self, told: list[tuple[WatchProvidersResponse, bool]]
    ) -> None:
        builder, rows = CatalogBuilder(SETTINGS), {"providers": {}, "models": {}}
        for change, is_asked in told:
            catalog = builder.take(change)
            _kept(change, rows)
            # What was not asked between two changes is not kept.
            if is_asked:
                assert _told(catalog) == _told(Catalog(*map(dict.values, rows.values()), [], SETTINGS))

    def test_a_change_of_one_provider_leaves_the_others_as_they_are(self) -> None:
        rows = [make_provider(f"p{number}", "http://127.0.0.1:1") for number in range(MANY)]
        builder = CatalogBuilder(SETTINGS)
        before = builder.take(WatchProvidersResponse(is_snapshot=True, providers=rows))
        old = {id(candidate) for candidate in before.candidates(ANTHROPIC, "m")}
        changed = Provider()
        changed.CopyFrom(rows[7])
        changed.weight = 3
        after = builder.take(WatchProvidersResponse(providers=[changed]))
        new = [candidate for candidate in after.candidates(ANTHROPIC, "m") if id(candidate) not in old]
        assert [(candidate.provider_id, candidate.weight) for candidate in new] == [("p7", 3)]
        assert after.prices is before.prices

    def test_a_change_of_a_model_is_seen_at_providers_that_are_the_same(self) -> None:
        builder = CatalogBuilder(SETTINGS)
        row = make_provider("p", "http://127.0.0.1:1")
        before = builder.take(WatchProvidersResponse(is_snapshot=True, providers=[row]))
        assert before.candidates(ANTHROPIC, "m")[0].targets[0].max_output_tokens == 0
        after = builder.take(WatchProvidersResponse(models=[Model(model_id="m", max_output_tokens=9)]))
        assert after.candidates(ANTHROPIC, "m")[0].targets[0].max_output_tokens == 9

    def test_names_are_not_tried_at_providers_that_have_others(self) -> None:
        rows = [
            make_provider(f"p{number}", "http://127.0.0.1:1", supported_models=[f"only-{number}"])
            for number in range(MANY)
        ]
        rows.append(
            make_provider("wide", "http://127.0.0.1:1", supported_models=["only-1*"], dialects=[CHAT])
        )
        catalog = CatalogBuilder(SETTINGS).take(WatchProvidersResponse(is_snapshot=True, providers=rows))
        asked: list[str] = []
        for provider_id, rules in catalog._rules.items():
            catalog._rules[provider_id] = _Counted(rules, asked)  # type: ignore[assignment]
        assert set(catalog.served_names()) == {f"only-{number}" for number in range(MANY)}
        assert len(asked) == 2 * MANY


class _Counted:
    """Rules that note what they are asked."""

    def __init__(self, rules: Any, asked: list[str]) -> None:
        self._rules, self._asked = rules, asked

    def match(self, name: str) -> Any:
        self._asked.append(name)
        return self._rules.match(name)
