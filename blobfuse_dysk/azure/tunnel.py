"""The TCP connection to an endpoint, direct or by way of a proxy: CONNECT, the proxy's consent, and from then on bytes.

Source: RFC 9110, 9.3.6 (CONNECT) and 11.7 (Proxy-Authorization); RFC 7617 (Basic).
"""

from __future__ import annotations

import re

import trio

from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.errors import TransportError
from blobfuse_dysk.printable import printable
from blobfuse_dysk.proxies import Proxy

__all__ = ["open_stream"]

_MOST_HEAD = 16 << 10  # bytes
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r\n")


async def open_stream(endpoint: Endpoint, proxy: Proxy | None) -> trio.SocketStream:
    """Connect. Names are resolved each time, IPv4 and IPv6 race (RFC 8305); the endpoint's by a proxy.

    Raises OSError, or TransportError for what is between us and a proxy, or between it and the endpoint.
    """
    if proxy is None:
        return await trio.open_tcp_stream(endpoint.host, endpoint.port)
    try:
        stream = await trio.open_tcp_stream(proxy.host, proxy.port)
    except OSError as error:
        raise _failed(proxy, f"cannot be reached ({_reason(error)})", _UNREACHED) from error
    try:
        await stream.send_all(_request(endpoint, proxy))
        _check(endpoint, proxy, await _head(stream, proxy))
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise _failed(proxy, "closed the connection", _UNREACHED) from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


def _request(endpoint: Endpoint, proxy: Proxy) -> bytes:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    place = f"{host}:{endpoint.port}"
    lines = [
        f"CONNECT {place} HTTP/1.1",
        f"Host: {place}",
        *(f"{name}: {text}" for name, text in proxy.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def _head(stream: trio.SocketStream, proxy: Proxy) -> bytes:
    """The proxy's answer up to its empty line; nothing may follow, since the endpoint speaks only when spoken to."""
    head = bytearray()
    while not (end := head.find(b"\r\n\r\n") + 4) > 3:
        if len(head) > _MOST_HEAD:
            raise _failed(proxy, "gives an answer that does not end", _NO_PROXY)
        piece = await stream.receive_some(4096)
        if not piece:
            raise _failed(proxy, "closed the connection", _UNREACHED)
        head += piece
    if b" 2" in head[:12] and end < len(head):
        raise _failed(proxy, "sends more than its consent", _NO_PROXY)
    return bytes(head[:end])


def _check(endpoint: Endpoint, proxy: Proxy, head: bytes) -> None:
    found = _STATUS.match(head)
    if found is None:
        raise _failed(proxy, "does not speak HTTP", _NO_PROXY)
    status = int(found[1])
    if 200 <= status < 300:
        return
    words = printable((found[2] or b"").decode("latin-1"), 100)
    how = f"does not connect to {endpoint.host}:{endpoint.port} (HTTP {status}{f' {words}' if words else ''})"
    if status == 407:
        remedy = "it wants user and password: proxy = http://USER:PASSWORD@HOST:PORT in the credential file"
    elif status >= 500:
        remedy = "check the endpoint's name; or the proxy has no way to it"
    else:
        remedy = "have it allow CONNECT to that host and port, or go without it: no_proxy, or proxy=none"
    raise _failed(proxy, how, remedy)


_UNREACHED = "check the proxy's name and port; go without it by no_proxy, or proxy=none"
_NO_PROXY = "is this an HTTP proxy? check its name and port"


def _failed(proxy: Proxy, how: str, remedy: str) -> TransportError:
    named = f", named by {proxy.source}," if proxy.source else ""
    return TransportError(f"the proxy {proxy}{named} {how}", sent=False, remedy=remedy)


def _reason(error: OSError) -> str:
    """The first of the failures to connect to a name's addresses, which trio wraps."""
    cause: BaseException = error
    while True:
        inner = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__
        if not isinstance(inner, BaseException):
            break
        cause = inner
    return getattr(cause, "strerror", None) or str(cause)
