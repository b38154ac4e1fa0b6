"""The whole set in memory: matches against looking at every provider, pages against the whole list."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from lurus.provider.v1 import provider_pb2 as pb
from lurus_common.errors import InvalidRequest
from lurus_common.matching import match
from lurus_provider import collection
from lurus_provider.collection import ProviderSet

names = st.text(alphabet="ab", max_size=3)
rules = st.one_of(names.filter(bool), st.builds(lambda a, b: f"{a}*{b}", names, names))
mappings = st.builds(lambda model, target: pb.ModelMapping(model=model, upstream_model=target), rules, rules)
providers = st.builds(
    pb.Provider,
    provider_id=st.text(alphabet="xyz", min_size=1, max_size=4),
    dialects=st.lists(st.integers(1, 3), max_size=3),
    level=st.integers(0, 3),
    supported_models=st.lists(rules, max_size=3),
    model_mappings=st.lists(mappings, max_size=2),
    is_disabled=st.booleans(),
)


@given(
    st.lists(providers, max_size=8, unique_by=lambda provider: provider.provider_id), names, st.integers(0, 3)
)
def test_matches_are_what_asking_every_provider_finds(
    found: list[pb.Provider], model: str, dialect: int
) -> None:
    expected = []
    for provider in found:
        how = match(provider, model)
        if how and not provider.is_disabled and (not dialect or dialect in provider.dialects):
            key = (provider.level or 1, how.precedence, provider.provider_id)
            expected.append((key, how.upstream_model, how.rule))
    answer = ProviderSet(pb.WatchProvidersResponse(providers=found)).matches(model, dialect)
    assert [(row.provider.provider_id, row.upstream_model, row.rule) for row in answer] == [
        (key[-1], upstream_model, rule) for key, upstream_model, rule in sorted(expected)
    ]


def pages(page: Any) -> list[Any]:
    """Everything, page by page."""
    rows: list[Any] = []
    token = ""
    while True:
        found, token = page(token)
        assert found
        rows += found
        if not token:
            return rows


@given(st.sets(st.tuples(st.integers(1, 9), st.text(max_size=3)), min_size=1, max_size=20), st.integers(1, 7))
def test_pages_hold_everything_once_in_order(keys: set[tuple[int, str]], size: int) -> None:
    rows = [
        pb.Price(price_id=f"price_{model}{time}", model=model, effective_time=Timestamp(seconds=time))
        for time, model in keys
    ]
    whole = ProviderSet(pb.WatchProvidersResponse(prices=rows))
    expected = sorted(rows, key=lambda row: (row.model, row.effective_time.seconds))
    assert pages(lambda token: whole.price_page(size, token, "", None)) == expected


def test_a_page_never_exceeds_what_a_channel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "MAX_PAGE_BYTES", 250)
    rows = [pb.Provider(provider_id=f"p{number}", display_name="x" * 100) for number in range(5)]
    whole = ProviderSet(pb.WatchProvidersResponse(providers=rows))
    assert len(whole.provider_page(0, "", "")[0]) == 2
    assert len(pages(lambda token: whole.provider_page(0, token, ""))) == 5


def test_the_token_of_another_list_is_refused() -> None:
    whole = ProviderSet(pb.WatchProvidersResponse(models=[pb.Model(model_id=name) for name in "ab"]))
    token = whole.model_page(1, "")[1]
    with pytest.raises(InvalidRequest):
        whole.provider_page(1, token, "")
