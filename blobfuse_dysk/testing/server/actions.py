"""What becomes of a request that a fault strikes: one function an action, named in ACTIONS.

faults.py says which requests a rule strikes and what each action means. A function ends in an answer, in a connection
that is left alone, closed or reset, or in something that goes on when the request is released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .answers import Answer, Refusal, http_date

if TYPE_CHECKING:
    from .exchange import Exchange
    from .faults import Fault

__all__ = ["ACTIONS"]

# What a gateway (a proxy, load balancer or captive portal) calls its answers; HTTP's own words for the others.
_GATEWAY_REASONS = {
    200: "OK",
    302: "Found",
    307: "Temporary Redirect",
    407: "Proxy Authentication Required",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}
_INTERIM_HEADERS = {
    101: "Upgrade: websocket\r\nConnection: Upgrade\r\n",
    103: "Link: </style.css>; rel=preload; as=style\r\n",
}


# Of the service itself, or on the way to it: the request is applied or not, and its answer arrives or not.


def _error(exchange: Exchange, fault: Fault) -> None:
    answer = _error_answer(exchange, fault)
    if fault.when == "after":
        exchange.apply()
        exchange.send(answer)
    else:
        exchange.end_write()
        exchange.count_and_send(answer)


def _reset(exchange: Exchange, fault: Fault) -> None:
    if fault.when == "after":
        exchange.apply()
    exchange.end_write()
    exchange.connection.abandon("reset")


def _lost(exchange: Exchange, fault: Fault) -> None:
    exchange.apply()
    exchange.connection.abandon(fault.connection)


def _blackhole(exchange: Exchange, fault: Fault) -> None:
    exchange.end_write()
    exchange.connection.abandon("open")


def _late(exchange: Exchange, fault: Fault) -> None:
    def apply_late() -> None:
        statistics = exchange.service.statistics
        if exchange.apply().status < 300:
            statistics.held_applied += 1
        else:
            statistics.held_refused += 1

    exchange.hold(fault, apply_late)
    if fault.status is not None:
        exchange.send(_error_answer(exchange, fault))
    else:
        exchange.connection.abandon(fault.connection)


def _delay(exchange: Exchange, fault: Fault) -> None:
    exchange.hold(fault, exchange.finish)


def _stall(exchange: Exchange, fault: Fault) -> None:
    whole = b"".join(exchange.wire(exchange.apply()))
    half = len(whole) // 2
    exchange.connection.send([whole[:half]])
    exchange.hold(fault, lambda: exchange.connection.respond([whole[half:]]))


def _short(exchange: Exchange, fault: Fault) -> None:
    head, body = exchange.wire(exchange.apply())
    exchange.connection.respond_and_close([head, body[: len(body) // 2]] if body else [head[: len(head) // 2]])


def _corrupt(exchange: Exchange, fault: Fault) -> None:
    if exchange.operation is not None and exchange.operation.access == "write":
        exchange.request.body = _flip(exchange.request.body)
        exchange.finish()
        return
    answer = exchange.apply()
    answer.body = _flip(answer.body)
    exchange.send(answer)


def _wrong_etag(exchange: Exchange, fault: Fault) -> None:
    answer = exchange.apply()
    answer.headers["ETag"] = '"0x8D0BADBADBADBAD"'
    exchange.send(answer)


# Of what stands between: answers that are not the service's, and the service's in other words.


def _gateway(exchange: Exchange, fault: Fault) -> None:
    if fault.when == "after":
        exchange.apply()
    exchange.end_write()
    exchange.connection.respond(_gateway_answer(exchange, fault))


def _forget(exchange: Exchange, fault: Fault) -> None:
    exchange.end_write()
    exchange.service.forget_connections()


def _interim(exchange: Exchange, fault: Fault) -> None:
    status = fault.status
    assert status is not None
    head = f"HTTP/1.1 {status} Interim\r\n{_INTERIM_HEADERS.get(status, '')}\r\n".encode()
    exchange.connection.send([head * fault.count])
    exchange.finish()


def _headers(exchange: Exchange, fault: Fault) -> None:
    head, body = exchange.wire(exchange.apply())
    exchange.connection.respond([_with_headers(head, fault.headers.items()), body])


def _close_delimited(exchange: Exchange, fault: Fault) -> None:
    answer = exchange.apply()
    head, body = exchange.wire(answer)
    head = _with_headers(head, [("Connection", "close")])
    if not answer.head_only:  # an answer to HEAD has no body; its Content-Length is the blob's size
        head = _with_headers(head, [("Content-Length", None)])
    exchange.connection.respond_and_close([head, body[: len(body) - fault.missing]])


ACTIONS: dict[str, Callable[[Exchange, Fault], None]] = {
    function.__name__[1:]: function
    for function in (
        _blackhole,
        _close_delimited,
        _corrupt,
        _delay,
        _error,
        _forget,
        _gateway,
        _headers,
        _interim,
        _late,
        _lost,
        _reset,
        _short,
        _stall,
        _wrong_etag,
    )
}


def _error_answer(exchange: Exchange, fault: Fault) -> Answer:
    refusal = Refusal(fault.code or "", status=fault.status)
    if fault.retry_after_s is not None:
        refusal.headers["Retry-After"] = str(fault.retry_after_s)
    return exchange.error(refusal)


def _gateway_answer(exchange: Exchange, fault: Fault) -> tuple[bytes, bytes]:
    """(head, body): a page for people, and nothing that the service puts into each of its answers."""
    status = fault.status
    assert status is not None
    words = _GATEWAY_REASONS.get(status, "Error")
    body = b""
    if exchange.request.method != "HEAD":
        page = f"<html><head><title>{status} {words}</title></head><body><h1>{status} {words}</h1></body></html>\r\n"
        body = page.encode()
    lines = [
        f"HTTP/1.1 {status} {words}",
        "Server: gateway/1.0",
        f"Date: {http_date(exchange.service.now())}",
        "Content-Type: text/html",
        f"Content-Length: {len(body)}",
    ]
    if 300 <= status < 400:
        # To this very server: it counts whoever follows, under "unknown".
        scheme = "https" if exchange.request.secure else "http"
        lines.append(f"Location: {scheme}://{exchange.request.header(b'host')}/gateway")
    if status == 407:
        lines.append('Proxy-Authenticate: Basic realm="gateway"')
    if fault.retry_after_s is not None:
        lines.append(f"Retry-After: {fault.retry_after_s}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1"), body


def _with_headers(head: bytes, changes: Iterable[tuple[str, str | None]]) -> bytes:
    """The head with these headers in place of those of the same name; None: without any of that name."""
    given = list(changes)
    names = {name.lower().encode("latin-1") for name, _ in given}
    lines = [line for line in head.split(b"\r\n")[:-2] if line.partition(b":")[0].lower() not in names]
    lines += [f"{name}: {value}".encode("latin-1") for name, value in given if value is not None]
    return b"\r\n".join([*lines, b"", b""])


def _flip(data: bytes) -> bytes:
    """One bit in the middle changed."""
    damaged = bytearray(data)
    if damaged:
        damaged[len(damaged) // 2] ^= 0x10
    return bytes(damaged)
