"""The model rules, against a slow model of the same rules."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurus.provider.v1.provider_pb2 import ModelMapping, Provider
from lurus_common.errors import InvalidRequest
from lurus_common.matching import ModelRules, allows, check_mappings, check_patterns, match, rank

text = st.text(alphabet="ab-", max_size=4)
patterns = st.one_of(text.filter(bool), st.builds(lambda prefix, suffix: f"{prefix}*{suffix}", text, text))


def provider(
    supported: Sequence[str] = (), mappings: Sequence[tuple[str, str]] = (), **fields: object
) -> Provider:
    """A provider with these rules."""
    pairs = [ModelMapping(model=model, upstream_model=target) for model, target in mappings]
    return Provider(supported_models=supported, model_mappings=pairs, **fields)  # type: ignore[arg-type]


def slow_rule(rules: Sequence[str], model: str) -> str | None:
    """The best rule, by looking at every one."""
    if model in rules:
        return model
    fitting = []
    for rule in rules:
        if rule.count("*") == 1:
            prefix, suffix = rule.split("*")
            long_enough = len(model) >= len(prefix) + len(suffix)
            if long_enough and model.startswith(prefix) and model.endswith(suffix):
                fitting.append((-len(prefix), -len(suffix), rule))
    return min(fitting)[2] if fitting else None


@pytest.mark.parametrize(
    ("supported", "mappings", "model", "upstream_model", "rule"),
    [
        ([], [], "anything", "anything", ""),
        (["gpt-5"], [], "gpt-5", "gpt-5", "gpt-5"),
        (["gpt-5"], [], "gpt-5-mini", None, None),
        (["gpt-*"], [], "gpt-", "gpt-", "gpt-*"),
        (["a*a"], [], "a", None, None),
        (["*", "gpt-*", "*-mini"], [], "gpt-5-mini", "gpt-5-mini", "gpt-*"),
        (["*mini", "*-mini"], [], "gpt-5-mini", "gpt-5-mini", "*-mini"),
        (["a**", "*"], [], "a**", "a**", "*"),
        ([], [("claude-*", "anthropic/claude-*")], "claude-x", "anthropic/claude-x", "claude-*"),
        ([], [("claude-*", "anthropic/claude-*")], "gpt-5", None, None),
        ([], [("claude-*", "one-name")], "claude-x", "one-name", "claude-*"),
        ([], [("*", "x/*"), ("big", "small")], "big", "small", "big"),
        (["claude-x"], [("claude-*", "v/*")], "claude-x", "v/x", "claude-x"),
        (["claude-*"], [("claude-*", "v/*")], "claude-x", "v/x", "claude-*"),
        (["gpt-5"], [("claude-*", "v/*")], "gpt-5", "gpt-5", "gpt-5"),
        ([], [("a*", "first-*"), ("a*", "second-*")], "ab", "first-b", "a*"),
        ([], [("a*", "x*y")], "a*", "x*y", "a*"),
        (["Claude"], [], "claude", None, None),
    ],
)
def test_rules(
    supported: list[str],
    mappings: list[tuple[str, str]],
    model: str,
    upstream_model: str | None,
    rule: str | None,
) -> None:
    found = match(provider(supported, mappings), model)
    assert (found and found.upstream_model, found and found.rule) == (upstream_model, rule)


@given(st.lists(patterns, max_size=12), st.lists(st.tuples(patterns, patterns), max_size=12), text)
def test_the_best_rule_is_what_looking_at_every_rule_finds(
    supported: list[str], mappings: list[tuple[str, str]], model: str
) -> None:
    found = match(provider(supported, mappings), model)
    both = [*supported, *(rule for rule, _ in mappings)]
    expected = slow_rule(both, model) if both else ""
    assert (found.rule if found else None) == expected


@given(st.sets(patterns, max_size=10), st.dictionaries(patterns, patterns, max_size=10), text, st.integers())
def test_the_order_of_different_rules_does_not_matter(
    supported: set[str], mappings: dict[str, str], model: str, seed: int
) -> None:
    names, pairs = sorted(supported), sorted(mappings.items())
    expected = match(provider(names, pairs), model)
    shuffle = random.Random(seed).shuffle
    for _ in range(10):  # times 100 examples
        shuffle(names)
        shuffle(pairs)
        assert match(provider(names, pairs), model) == expected


@given(text, text, text, text, text)
def test_a_substitution_can_be_undone(
    prefix: str, suffix: str, other_prefix: str, other_suffix: str, middle: str
) -> None:
    there, back = f"{prefix}*{suffix}", f"{other_prefix}*{other_suffix}"
    upstream = match(provider([], [(there, back)]), prefix + middle + suffix)
    assert upstream is not None
    assert upstream.upstream_model == other_prefix + middle + other_suffix
    home = match(provider([], [(back, there)]), upstream.upstream_model)
    assert home is not None
    assert home.upstream_model == prefix + middle + suffix


def test_matches_are_ranked_by_level_then_rule_then_id() -> None:
    providers = [
        provider(["gpt-5"], level=2, provider_id="later"),
        provider(provider_id="every"),
        provider(["*"], provider_id="star"),
        provider(["gpt-*"], level=1, provider_id="b"),
        provider(["gpt-*"], provider_id="a"),
        provider(["gpt-5"], provider_id="exact"),
    ]
    found = [(one, match(one, "gpt-5")) for one in providers]
    ranked = sorted((rank(one, how), one.provider_id) for one, how in found if how)
    assert [name for _, name in ranked] == ["exact", "a", "b", "star", "every", "later"]


def test_an_allow_list_allows_what_it_names_and_if_empty_everything() -> None:
    assert allows([], "x")
    assert allows(["claude-*"], "claude-x")
    assert not allows(["claude-*"], "gpt-5")
    assert not allows(["a**"], "abc")


def test_rules_that_cannot_work_are_refused() -> None:
    check_patterns(["a", "a*", "*"], "supported_models")
    with pytest.raises(InvalidRequest):
        check_patterns(["a**"], "supported_models")
    with pytest.raises(InvalidRequest):
        check_mappings([ModelMapping(model="a", upstream_model="b*")], "model_mappings")
    with pytest.raises(InvalidRequest):
        check_mappings([ModelMapping(model="a*", upstream_model="b**")], "model_mappings")


def test_ten_thousand_rules_are_compiled_once_and_searched_fast() -> None:
    rules = ModelRules(provider([f"model-{number}-*" for number in range(10_000)]))
    assert len(rules._whitelist._shapes) == 4  # a search is at most this many look-ups
    found = rules.match("model-77-x")
    assert found is not None
    assert found.rule == "model-77-*"
