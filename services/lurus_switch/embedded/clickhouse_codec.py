"""Content encodings of the ClickHouse HTTP interface: gzip, deflate, lz4 and zstd, as streams."""

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lz4.frame  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STEP_BYTES = 1024 * 1024
"""The most that one step of decompression returns, so that a small body cannot become a huge one at once."""

ENCODINGS = ("lz4", "zstd", "gzip", "deflate")

CodecError = (zlib.error, RuntimeError, zstd.ZstdError, EOFError)
"""What the libraries raise for bytes that are not in their encoding."""


class _Zlib:
    """Gives zlib the interface of the other decompressors."""

    def __init__(self, window_bits: int) -> None:
        self._inflate = zlib.decompressobj(window_bits)

    def decompress(self, data: bytes, limit: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, limit)

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": zstd.ZstdDecompressor,
    "gzip": lambda: _Zlib(31),
    "deflate": lambda: _Zlib(15),
}


def decompressed(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Yields the content of an encoded body, which may be several frames one after the other.

    Raises EOFError if it ends within a frame, another `CodecError` if it is malformed.
    """
    decompressor: Any = None
    for chunk in chunks:
        data = chunk
        while data or (decompressor is not None and not decompressor.needs_input):
            decompressor = decompressor or _DECOMPRESSORS[encoding]()
            if piece := decompressor.decompress(data, STEP_BYTES):
                yield piece
            data = b""
            if decompressor.eof:
                data, decompressor = decompressor.unused_data, None
    if decompressor is not None:
        raise EOFError("the body ends within a compressed frame")


def compressed(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Yields `chunks` as one frame of `encoding`."""
    if encoding == "lz4":
        with lz4.frame.LZ4FrameCompressor() as compressor:
            yield compressor.begin()
            for chunk in chunks:
                yield compressor.compress(chunk)
            yield compressor.flush()
        return
    stream: Any = zstd.ZstdCompressor(level=1) if encoding == "zstd" else _deflater(encoding)
    for chunk in chunks:
        yield stream.compress(chunk)
    yield stream.flush()


def _deflater(encoding: str) -> Any:
    return zlib.compressobj(level=1, wbits=31 if encoding == "gzip" else 15)


def accepted_encoding(header: str) -> str | None:
    """Returns the first encoding in an Accept-Encoding header that we can write, or None."""
    for part in header.split(","):
        name, _, parameters = part.strip().partition(";")
        if name.strip() in ENCODINGS and parameters.replace(" ", "") not in ("q=0", "q=0.0"):
            return name.strip()
    return None
