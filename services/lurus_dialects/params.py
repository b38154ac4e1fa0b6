"""Leaves fields out of a request, or writes them into it, as the operator says of a provider.

The text is spliced, never parsed and written again: of all other members the
bytes, their order, the space between them and the spelling of numbers stay
(wire-contract B1d).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lurus_dialects.request import locate_all


@dataclass(frozen=True, slots=True)
class Param:
    """A top-level member with its value as JSON; None leaves it out."""

    name: str
    json: bytes | None


def with_params(body: bytes, params: Iterable[Param]) -> tuple[bytes, list[str]]:
    """Returns a JSON object with other members, and the names of those that are no longer as they were.

    A member that is set is replaced where it stands, each of its repeats too, or
    added as the last one; one that is not there is none of the names.

    Raises:
        InvalidRequest: the body is no object, or has too many members.
    """
    wanted = {param.name: param.json for param in params}
    members = locate_all(body)
    if not wanted or not (members or any(wanted.values())):
        return body, []
    changed: list[str] = []
    kept: list[bytes] = []
    # What stands behind the last member that was kept.
    separator = b""
    for number, member in enumerate(members):
        value = wanted.get(member.name, body[member.begin : member.end])
        if value != body[member.begin : member.end]:
            changed.append(member.name)
        if value is not None:
            kept += [separator, body[member.key : member.begin], value]
            separator = body[member.end : members[number + 1].key] if number + 1 < len(members) else b","
    known = {member.name for member in members}
    added = [
        b'"%s":%s' % (name.encode(), value)
        for name, value in wanted.items()
        if value is not None and name not in known
    ]
    if added:
        kept += [b"," if kept else b"", b",".join(added)]
    head = body[: members[0].key] if members else body[: body.index(b"{") + 1]
    tail = body[members[-1].end :] if members else body[body.rindex(b"}") :]
    return b"".join([head, *kept, tail]), list(dict.fromkeys(changed))
