"""Compares a provider's bill with what we have metered; says what is likely behind each difference. Pure."""

import enum
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from lurus_switch.provider_bills import KINDS, TOKEN_KINDS, Bill

COST = "cost"
# A release of a model: vendors bill `claude-x-20270131` for what was asked as `claude-x`.
_RELEASE = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2}|latest)\Z")
# So far from whole is still whole: a factor of 17, and not of 17.3.
_NEAR_WHOLE = 0.02
_LEAST_FACTOR = 1.9
# So near to what the day beside lacks is the same usage, on another day.
_NEAR_SHIFT = 0.05


@dataclass(slots=True)
class Ours:
    """What we have metered of one day and model at a provider."""

    counts: Counter[str] = field(default_factory=Counter)
    cost_nano_usd: int = 0
    # Of how many requests the counts are our own estimates.
    estimated_count: int = 0
    unpriced_count: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure on which bill and gateway do not agree.

    Attributes:
        model: empty if it is the whole day.
        kind: one of `KINDS`, a vendor's own, or `cost` in nano-USD; empty if it is all of them.
    """

    day: date
    model: str
    kind: str
    billed: int
    metered: int
    cause: str

    @property
    def ratio(self) -> float | None:
        """The bill by ours; None if we have nothing."""
        return self.billed / self.metered if self.metered else None


class Verdict(enum.StrEnum):
    """What a comparison comes to."""

    AGREES = "agrees"
    DIFFERS = "differs"
    INCOMPLETE = "incomplete"


@dataclass(slots=True)
class Checked:
    """What a comparison has found."""

    differences: list[Difference]
    # Why it is not a whole comparison.
    problems: list[str]
    notes: list[str] = field(default_factory=list)
    compared_count: int = 0

    @property
    def verdict(self) -> Verdict:
        """Never that it agrees if something is missing, or nothing could be compared."""
        if self.differences:
            return Verdict.DIFFERS
        return Verdict.INCOMPLETE if self.problems or not self.compared_count else Verdict.AGREES


Figures = dict[tuple[date, str], dict[str, int]]


def plain_model(model: str) -> str:
    """Returns a model's name without its release."""
    return _RELEASE.sub("", model.strip().lower())


def check(
    bill: Bill,
    metered: Mapping[tuple[date, str], Ours],
    days: Sequence[date],
    *,
    keys: Iterable[str] = (),
    tolerance: float = 0.001,
) -> Checked:
    """Compares day by day and model by model.

    Args:
        bill: the provider's report.
        metered: ours by day (UTC) and `plain_model`.
        days: that both should know.
        keys: the vendor's names of the keys that the gateway uses; empty means all.
        tolerance: a difference up to this part is none.
    """
    billed, foreign = _billed(bill, frozenset(keys))
    found = Checked([], [bill.problem] if bill.problem else [])
    missing = [day for day in days if day not in bill.days]
    for day in missing:
        found.problems.append(f"the report has no {day}")
    both = [day for day in days if day in bill.days]
    kinds = {kind for figures in billed.values() for kind in figures}
    if both and not kinds:
        found.problems.append("the report states neither tokens nor amounts")
    places = {place for place in (*billed, *metered) if place[0] in both}
    for place in sorted(places):
        theirs, ours = billed.get(place, {}), metered.get(place, Ours())
        found.compared_count += len(kinds)
        found.differences += _differences(place, theirs, ours, kinds, tolerance)
    found.differences += _lost_days(metered, missing)
    found.differences = _with_patterns(found.differences, metered, kinds)
    if foreign:
        found.notes.append(f"{foreign} lines are of keys that this gateway does not use: left out")
    return found


def _billed(bill: Bill, keys: frozenset[str]) -> tuple[Figures, int]:
    """Returns the sums of a bill, and how many lines are of other keys."""
    sums: dict[tuple[date, str], Counter[str]] = defaultdict(Counter)
    foreign = 0
    for line in bill.lines:
        if keys and line.key not in keys:
            foreign += 1
            continue
        place = sums[line.day, plain_model(line.model)]
        # Zeros too: what is stated is compared.
        for kind, count in line.counts.items():
            place[kind] += count
        if line.cost_nano_usd is not None:
            place[COST] += line.cost_nano_usd
    return {place: dict(counts) for place, counts in sums.items()}, foreign


def _differences(
    place: tuple[date, str], theirs: Mapping[str, int], ours: Ours, kinds: Iterable[str], tolerance: float
) -> list[Difference]:
    day, model = place
    mine = {**{kind: ours.counts[kind] for kind in KINDS}, COST: ours.cost_nano_usd}
    found = []
    for kind in sorted(kinds, key=_place):
        billed, metered = theirs.get(kind, 0), mine.get(kind, 0)
        if abs(billed - metered) > tolerance * max(billed, metered):
            found.append(Difference(day, model, kind, billed, metered, ""))
    if not found:
        return []
    if not any(mine.values()):
        cause = "none of ours: calls beside the gateway, or another name of a model of ours"
    elif not any(theirs.values()):
        cause = "the model is missing in the report that day, or billed under another name"
    else:
        return [_explained(one, found, ours) for one in found]
    return [Difference(day, model, one.kind, one.billed, one.metered, cause) for one in found]


def _place(kind: str) -> tuple[int, str]:
    """Ours in their order, then what only the vendor has a word for, then cost."""
    ours = (*KINDS, "", COST)
    return ours.index(kind if kind in ours else ""), kind


def _explained(one: Difference, all_of_them: Sequence[Difference], ours: Ours) -> Difference:
    differing = {other.kind for other in all_of_them}
    if one.kind == COST and not differing & set(TOKEN_KINDS) and ours.unpriced_count:
        cause = f"{ours.unpriced_count} requests have no price here: see lurus price"
    elif one.kind == COST and differing == {COST}:
        cause = "the price: same tokens, another rate, tier or multiplier than ours"
    elif one.billed > one.metered and ours.estimated_count:
        cause = f"{ours.estimated_count} interrupted requests are estimated here"
    elif one.billed > one.metered:
        cause = "calls beside the gateway with the same key, or calls that we have not seen the end of"
    else:
        cause = "billed by the provider on another day or under another name, or not at all"
    return Difference(one.day, one.model, one.kind, one.billed, one.metered, cause)


def _lost_days(metered: Mapping[tuple[date, str], Ours], missing: Sequence[date]) -> list[Difference]:
    found = []
    for day in missing:
        cost = sum(ours.cost_nano_usd for (when, _), ours in metered.items() if when == day)
        if any(when == day for when, _ in metered):
            found.append(Difference(day, "", COST, 0, cost, "the report lacks the day, and we have usage"))
    return found


def _with_patterns(
    differences: Sequence[Difference], metered: Mapping[tuple[date, str], Ours], kinds: Iterable[str]
) -> list[Difference]:
    """Names what only shows in several differences together; the others keep the cause that they have."""
    unmetered = {
        kind
        for kind in kinds
        if kind != COST and not any(ours.counts[kind] for ours in metered.values()) and metered
    }
    found = []
    for one in differences:
        cause = one.cause
        if one.kind in unmetered and one.metered == 0:
            cause = f"{one.kind} is billed, and nobody has metered it here"
        elif one.metered and (factor := _factor(one)):
            cause = f"{factor} times ours: a unit taken for another, or something added up several times"
        elif _is_shifted(one, differences):
            cause = "the day beside lacks as much: days of another time zone"
        found.append(Difference(one.day, one.model, one.kind, one.billed, one.metered, cause))
    return found


def _factor(one: Difference) -> int:
    """Returns the whole number that the bill is of ours, or 0."""
    ratio = one.ratio or 0.0
    whole = round(ratio)
    return whole if ratio >= _LEAST_FACTOR and abs(ratio - whole) <= _NEAR_WHOLE * whole else 0


def _is_shifted(one: Difference, differences: Iterable[Difference]) -> bool:
    excess = one.billed - one.metered
    beside = {one.day - timedelta(days=1), one.day + timedelta(days=1)}
    return any(
        other.day in beside
        and (other.model, other.kind) == (one.model, one.kind)
        and abs(excess + other.billed - other.metered) <= _NEAR_SHIFT * abs(excess)
        for other in differences
        if (other.billed > other.metered) != (one.billed > one.metered)
    )
