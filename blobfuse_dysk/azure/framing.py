"""What the head of an HTTP/1.1 answer says of its body: how long it is, and whether the connection goes on. No I/O.

Source: RFC 9112, section 6.3, "Message Body Length".
"""

from __future__ import annotations

from dataclasses import dataclass

import httptools

from blobfuse_dysk.azure.wire import MOST_DIGITS

__all__ = ["CutError", "Framing", "frame", "status_of"]

MOST_REFUSED = 64 << 10  # bytes that are read of an answer that is no success; what the service says is far less
_NO_CALLBACKS = object()


class CutError(Exception):
    """The connection ended, or what came is not an answer."""

    @classmethod
    def ended(cls) -> CutError:
        """The error for the end of the stream where more is due."""
        return cls("connection closed in the middle of the answer")

    @classmethod
    def too_large(cls) -> CutError:
        """The error for a success with more body than its request can have."""
        return cls("the answer is larger than anything that is asked for")


@dataclass(slots=True)  # not frozen, which costs each request a microsecond
class Framing:
    """lower: the head, in lower case. keep: whether the peer keeps the connection. chunked: the body tells its end.

    length: the body's bytes that are to be read; None if it ends with the connection. most: bytes it may have at most.
    cuts: whether what is beyond `most` is left unread, and the connection with it; else it is an error.
    """

    status: int
    lower: bytes
    keep: bool
    chunked: bool
    length: int | None
    most: int
    cuts: bool


def status_of(head: bytes) -> int:
    """The status of an answer, whose head is checked. Raises CutError or httptools.HttpParserError."""
    parser = httptools.HttpResponseParser(_NO_CALLBACKS)
    status = 101
    try:
        parser.feed_data(head)
        status = parser.get_status_code()
    except httptools.HttpParserUpgrade:
        pass
    if status == 101:
        raise CutError("the peer goes on with another protocol (HTTP 101)")
    return status


def frame(status: int, head: bytes, *, no_body: bool, most: int) -> Framing:
    """Read a head. no_body: the request was HEAD. most: bytes that a success may have. Raises CutError."""
    lower = head.lower()
    keep = lower.startswith(b"http/1.1") and b"close" not in _value(lower, b"\r\nconnection:")
    chunked, cuts = False, status >= 300
    most = MOST_REFUSED if cuts else most
    length: int | None = 0
    if not (no_body or status in (204, 304)):
        chunked = bool(_value(lower, b"\r\ntransfer-encoding:"))
        length = None if chunked else _length(lower, status)
    if length is not None and length > most:
        if not cuts:
            raise CutError.too_large()
        length, keep = most, False
    return Framing(status, lower, keep, chunked, length, most, cuts)


def _value(lower: bytes, name: bytes) -> bytes:
    """The value of a header in a head in lower case; name: with the line end before it and the colon."""
    found = lower.find(name)
    if found < 0:
        return b""
    start = found + len(name)
    return lower[start : lower.find(b"\r\n", start)]


def _length(lower: bytes, status: int) -> int | None:
    """The body's length by Content-Length; None if it ends with the connection. A 201 or 202 without one has none."""
    text = _value(lower, b"\r\ncontent-length:").strip()
    if not text:
        return 0 if status in (201, 202) else None
    if not text.isdigit() or len(text) > MOST_DIGITS:
        raise CutError("the answer's length is no number")
    return int(text)
