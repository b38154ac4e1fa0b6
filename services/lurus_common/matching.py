"""Which provider serves a model, and under which name: the one implementation of the model rules.

A name is exact, or a pattern with one `*` that stands for any text, also none.
Of the rules that fit, the best one counts: exact, then the longest literal
prefix, then the longest literal suffix, then the declared order.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lurus.provider.v1.provider_pb2 import ModelMapping, Provider
from lurus_common.errors import InvalidRequest

WILDCARD = "*"
DEFAULT_LEVEL = 1

# Kind of rule, then minus the lengths of its literal prefix and suffix: smaller is better.
Precedence = tuple[int, int, int]
_EXACT: Precedence = (0, 0, 0)
_PATTERN_KIND = 1
_EVERY_MODEL: Precedence = (2, 0, 0)


class Match(NamedTuple):
    """How a provider serves a model: what it is asked for, and the rule (empty if it serves every model)."""

    upstream_model: str
    rule: str
    precedence: Precedence


class ModelPatterns:
    """Compiled names and patterns. One with more than one `*` never matches.

    A search costs one look-up for the exact names and one for each pair of
    prefix and suffix lengths that occurs, however many patterns there are.
    """

    __slots__ = ("_exact", "_patterns", "_shapes")

    def __init__(self, patterns: Iterable[str]) -> None:
        self._exact: dict[str, int] = {}
        self._patterns: dict[tuple[str, str], int] = {}
        for index, pattern in enumerate(patterns):
            prefix, wildcard, suffix = pattern.partition(WILDCARD)
            if not wildcard:
                self._exact.setdefault(pattern, index)
            elif WILDCARD not in suffix:
                self._patterns.setdefault((prefix, suffix), index)
        lengths = {(len(prefix), len(suffix)) for prefix, suffix in self._patterns}
        self._shapes = sorted(lengths, reverse=True)

    def find(self, model: str) -> tuple[Precedence, int, str] | None:
        """Returns the best rule that fits: its precedence, its position, and what its `*` stands for."""
        index = self._exact.get(model)
        if index is not None:
            return _EXACT, index, ""
        size = len(model)
        for prefix, suffix in self._shapes:
            end = size - suffix
            if prefix <= end:
                index = self._patterns.get((model[:prefix], model[end:]))
                if index is not None:
                    return (_PATTERN_KIND, -prefix, -suffix), index, model[prefix:end]
        return None


class ModelRules:
    """The compiled rules of one provider: compile once, ask often."""

    __slots__ = ("_mapped", "_mapping", "_serves_all", "_supported", "_whitelist")

    def __init__(self, provider: Provider) -> None:
        self._supported = list(provider.supported_models)
        self._mapping = [(mapping.model, mapping.upstream_model) for mapping in provider.model_mappings]
        self._whitelist = ModelPatterns(self._supported)
        self._mapped = ModelPatterns(model for model, _ in self._mapping)
        self._serves_all = not self._supported and not self._mapping

    def match(self, model: str) -> Match | None:
        """Returns how the provider serves `model`, or None if it does not.

        The mapping decides the upstream's name even where a better rule of the
        whitelist admits the model; without a mapping the name is unchanged.
        """
        if self._serves_all:
            return Match(model, "", _EVERY_MODEL)
        listed, mapped = self._whitelist.find(model), self._mapped.find(model)
        if mapped is None:
            return None if listed is None else Match(model, self._supported[listed[1]], listed[0])
        precedence, index, matched = mapped
        rule, target = self._mapping[index]
        upstream_model = _substitute(rule, target, matched)
        if listed is not None and listed[0] < precedence:
            return Match(upstream_model, self._supported[listed[1]], listed[0])
        return Match(upstream_model, rule, precedence)


def match(provider: Provider, model: str) -> Match | None:
    """Returns how `provider` serves `model`. Compiles its rules: on a hot path keep a `ModelRules`."""
    return ModelRules(provider).match(model)


def rank(provider: Provider, found: Match) -> tuple[int, Precedence, str]:
    """The sort key of a provider's match: level, precedence of the rule, id."""
    return provider.level or DEFAULT_LEVEL, found.precedence, provider.provider_id


def allows(patterns: Sequence[str], model: str) -> bool:
    """Whether an allow-list names `model`; an empty list allows every model."""
    return not patterns or ModelPatterns(patterns).find(model) is not None


def check_patterns(patterns: Iterable[str], param: str) -> None:
    """Refuses names with more than one `*`, which would never match.

    Args:
        patterns: names and patterns.
        param: path of the field, for the caller.

    Raises:
        InvalidRequest: names the first one.
    """
    for pattern in patterns:
        if pattern.count(WILDCARD) > 1:
            raise InvalidRequest(f"{pattern!r} has more than one `*`", param=param, pattern=pattern)


def check_mappings(mappings: Iterable[ModelMapping], param: str) -> None:
    """Refuses mappings with more than one `*` on a side, and with one on the right side only.

    Raises:
        InvalidRequest: names the first one.
    """
    for mapping in mappings:
        check_patterns([mapping.model, mapping.upstream_model], param)
        if WILDCARD in mapping.upstream_model and WILDCARD not in mapping.model:
            raise InvalidRequest(
                f"{mapping.upstream_model!r} has a `*` that {mapping.model!r} gives no text for",
                param=param,
                pattern=mapping.upstream_model,
            )


def _substitute(rule: str, target: str, matched: str) -> str:
    if WILDCARD not in rule:
        return target
    before, wildcard, after = target.partition(WILDCARD)
    return before + matched + after if wildcard else target
