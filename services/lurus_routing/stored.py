"""Requests about what a provider keeps: answers of the Responses API, and Anthropic's batches.

They go to the one credential that holds it and to nobody else, and are never
charged themselves.

Batches are charged by nobody: their usage appears in files that the gateway
does not read. So they are open only to accounts that an operator has named at
the provider, and not to keys that may use certain models only, since a batch
names its own.
"""

import re
from typing import Final

from lurus_common.errors import PathNotFound, PermissionDenied, ResponseNotFound
from lurus_dialects.dialect import Dialect
from lurus_dialects.endpoints import Endpoint, Kind, id_in
from lurus_dialects.request import Peek
from lurus_routing.affinity import ANSWER, Holders
from lurus_routing.call import Call
from lurus_routing.candidate import Candidate
from lurus_routing.catalog import Catalog
from lurus_routing.debts import PATH

_STREAMS: Final = re.compile(r"(?:^|&)stream=true(?:&|$)")
# Clients follow it, and would take their key of ours to the provider.
_RESULTS_URL: Final = re.compile(
    rb'("results_url"\s*:\s*")https?://[^/"\\]+(?:/[^/"\\]+)*?'
    rb'(/v1/messages/batches/[A-Za-z0-9_-]{1,256}/results")'
)


async def holder_of(call: Call, endpoint: Endpoint, holders: Holders, catalog: Catalog) -> Candidate:
    """Returns who is to be asked, and fills in what the call lacks to be asked there.

    Raises:
        ResponseNotFound, PathNotFound: it is not there, or not for this account.
        PermissionDenied: the key may not have it.
    """
    call.is_free = True
    if endpoint.kind is Kind.BATCHES:
        candidate = catalog.batches_for(call.grant.account_id)
        if candidate is None:
            raise PathNotFound(f"there is nothing at {call.request.path}")
        if call.grant.allowed_models:
            raise PermissionDenied("a key that may use certain models only may not use batches")
    else:
        candidate = await _holder_of_answer(call, holders, catalog)
    call.peeked = _peeked(call, endpoint, candidate)
    call.prices = catalog.prices
    return candidate


async def _holder_of_answer(call: Call, holders: Holders, catalog: Catalog) -> Candidate:
    name = id_in(call.request.path)
    held, _ = await holders.find(call.grant.account_id, ANSWER, name)
    candidate = None
    if held is not None:
        candidate = catalog.holder(*held.credential, call.request.dialect, held.upstream_model)
    if candidate is None:
        raise ResponseNotFound(f"Response with id '{name}' not found.", id=name)
    call.asks_holder = held
    return candidate


def _peeked(call: Call, endpoint: Endpoint, candidate: Candidate) -> Peek:
    request = call.request
    streams = request.method == "GET" and request.path == f"{PATH}/{id_in(request.path)}"
    return Peek(
        dialect=endpoint.dialect,
        model=call.asks_holder.model if call.asks_holder is not None else candidate.upstream_model,
        is_streaming=streams and _STREAMS.search(request.query) is not None,
        max_tokens=None,
        asks_for_usage=False,
        has_tools=False,
        user_id="",
        prompt_cache_key="",
        previous_response_id="",
        body_bytes=len(call.body),
        members={},
        spans={},
        end=0,
    )


def is_passed_on(dialect: Dialect, path: str) -> bool:
    """Whether an answer is a file of any size, which is passed on as it comes."""
    return dialect is Dialect.ANTHROPIC and path.endswith("/results")


def with_relative_urls(body: bytes) -> bytes:
    """Returns a batch, or a list of them, whose results are to be fetched from us."""
    return _RESULTS_URL.sub(rb"\1\2", body)
