"""What of a request head says how long its body is."""

FRAMING_HEADERS = (b"content-length", b"transfer-encoding")


def plain_head(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Returns a request head with nothing but the headers that say how long the body is."""
    lines = [b"%s: %s\r\n" % header for header in headers if header[0] in FRAMING_HEADERS]
    return b"POST / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n"
