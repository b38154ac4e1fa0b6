"""Reads request bodies: whole, decoded, never larger than the limit."""

import asyncio
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final

import brotli

from lurus_common.errors import EncodingInvalid, EncodingUnsupported, RequestTooLarge
from lurus_common.large import beside_loop
from lurus_edge.departure import ClientGone

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd  # A dependency of clickhouse-connect's.

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# Decoded at once, give or take the block of a coding; larger steps would hold up the other connections.
STEP_BYTES = 256 * 1024
# A body may grow this much, and always to this size: beyond it is a bomb.
MAX_GROWTH = 20
FREE_GROWTH_BYTES = 4 * 1024 * 1024
# Source: RFC 9659, which bounds the window of zstd in HTTP to 8 MiB.
ZSTD_WINDOW_LOG: Final = 23


class _Inflater:
    """gzip, and deflate in both of the forms that clients send."""

    def __init__(self, window_bits: int) -> None:
        self._inflater = zlib.decompressobj(window_bits)
        self._may_be_raw = window_bits == zlib.MAX_WBITS

    @property
    def is_complete(self) -> bool:
        return self._inflater.eof and not self._inflater.unused_data

    def pieces(self, data: bytes) -> Iterator[bytes]:
        piece = self._first(data)
        yield piece
        while len(piece) == STEP_BYTES:
            piece = self._inflater.decompress(self._inflater.unconsumed_tail, STEP_BYTES)
            yield piece

    def _first(self, data: bytes) -> bytes:
        try:
            piece = self._inflater.decompress(data, STEP_BYTES)
        except zlib.error:
            if not self._may_be_raw:
                raise
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            piece = self._inflater.decompress(data, STEP_BYTES)
        self._may_be_raw = False
        return piece


class _ZstdInflater:
    def __init__(self) -> None:
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
        self._inflater = zstd.ZstdDecompressor(options=options)

    @property
    def is_complete(self) -> bool:
        return self._inflater.eof and not self._inflater.unused_data

    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield self._inflater.decompress(data, STEP_BYTES)
        while not self._inflater.needs_input and not self._inflater.eof:
            yield self._inflater.decompress(b"", STEP_BYTES)


class _BrotliInflater:
    def __init__(self) -> None:
        # Windows over 16 MiB are an extension (RFC 9841), which it refuses.
        self._inflater = brotli.Decompressor()

    @property
    def is_complete(self) -> bool:
        return bool(self._inflater.is_finished())

    def pieces(self, data: bytes) -> Iterator[bytes]:
        # It takes no more input before all output is fetched, and says so by an empty piece only.
        while piece := self._inflater.process(data, output_buffer_limit=STEP_BYTES):
            yield piece
            data = b""


Decoder = _Inflater | _ZstdInflater | _BrotliInflater


def decoder_of(content_coding: bytes) -> Decoder | None:
    """Returns what decodes a body, None for a plain one.

    Raises:
        EncodingUnsupported: for every other coding, and for more than one.
    """
    match content_coding.strip().lower():
        case b"" | b"identity":
            return None
        case b"gzip" | b"x-gzip":
            return _Inflater(zlib.MAX_WBITS | 16)
        case b"deflate":
            return _Inflater(zlib.MAX_WBITS)
        case b"zstd":
            return _ZstdInflater()
        case b"br":
            return _BrotliInflater()
    raise EncodingUnsupported("the content encoding must be gzip, deflate, br, zstd or none")


async def read_body(
    receive: Receive, content_coding: bytes, maximum: int, hold: Callable[[int], None]
) -> bytes:
    """Returns the decoded body.

    Args:
        receive: ASGI's.
        content_coding: the value of `content-encoding`.
        maximum: bytes before and after decoding.
        hold: is told of all bytes that are kept, and may raise.

    Raises:
        ClientGone: it left before the end.
        RequestTooLarge, EncodingUnsupported, EncodingInvalid: as they say.
    """
    decoder = decoder_of(content_coding)
    chunks: list[bytes] = []
    received_bytes = 0
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        data: bytes = message.get("body", b"")
        received_bytes += len(data)
        if decoder is None:
            size += len(data)
            if size > maximum:
                raise RequestTooLarge(
                    f"the request body is larger than {maximum} bytes", maximum_bytes=maximum
                )
            hold(len(data))
            chunks.append(data)
        elif data:
            allowed = min(maximum, max(FREE_GROWTH_BYTES, received_bytes * MAX_GROWTH))
            size = await _decode(decoder, data, chunks, size, allowed, hold)
        if not message.get("more_body", False):
            break
    if decoder is not None and not decoder.is_complete and received_bytes:
        raise EncodingInvalid("the body does not end as its content encoding demands")
    return chunks[0] if len(chunks) == 1 else await beside_loop(size, b"".join, chunks)


async def _decode(
    decoder: Decoder, data: bytes, chunks: list[bytes], size: int, allowed: int, hold: Callable[[int], None]
) -> int:
    """Adds what `data` decodes to, and returns the size so far; lets others run after each full step."""
    try:
        for piece in decoder.pieces(data):
            size += len(piece)
            if size > allowed:
                raise RequestTooLarge(
                    f"the request body decodes to more than {allowed} bytes",
                    maximum_bytes=allowed,
                    error_code="request_body_too_large_after_decoding",
                )
            hold(len(piece))
            chunks.append(piece)
            if len(piece) >= STEP_BYTES:
                await asyncio.sleep(0)
    except (zlib.error, zstd.ZstdError, brotli.error, EOFError) as error:
        raise EncodingInvalid("the body is not what its content encoding says") from error
    return size
