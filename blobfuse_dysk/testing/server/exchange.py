"""One request of the data port, from arrival to answer.

Arrival: which operation, who asks, which fault strikes, how long it takes (latency and tier). Then, at once or
after that time, `_finish` applies it and answers; a fault does something else instead. Applying is one synchronous
step: whatever overlaps in time is applied in the order in which these steps happen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from .answers import Answer, Refusal, error_answer, http_date
from .auth import authorize
from .context import Context
from .faults import Fault
from .operations import Operation, choose
from .request import Request
from .statistics import Write

if TYPE_CHECKING:
    from .protocol import DataConnection
    from .service import Service

__all__ = ["Exchange"]

_log = logging.getLogger(__name__)
_UNKNOWN = "unknown"
_WHOLE = 8 << 40  # bytes: a page list to the end of the blob


class Exchange:
    """`start` is called once; everything else follows from it."""

    __slots__ = ("_connection", "_granted", "_operation", "_release", "_request", "_request_id", "_service", "_write")

    def __init__(self, service: Service, connection: DataConnection, request: Request) -> None:
        self._service = service
        self._connection = connection
        self._request = request
        self._request_id = service.next_request_id()
        self._operation: Operation | None = None
        self._granted = ""
        self._write: Write | None = None
        self._release: Callable[[], None] | None = None

    def start(self) -> None:
        """The request has arrived whole."""
        service, request = self._service, self._request
        try:
            operation = self._operation = choose(request)
            now = service.now()
            self._granted = authorize(service.config, request, operation.permissions, operation.resource_type, now)
            offset, length = self._data_range(operation)
            delay = service.draw_latency()
            if operation.access and service.rates is not None:
                delay += service.admit(request.target.key, length)
        except Refusal as refusal:
            self._count_and_send(self._error(refusal))
            return
        if operation.access == "write":
            self._begin_write(operation, offset, length)
        strike = service.faults.strike(operation, request.target, offset, length) if service.faults.active else None
        finish = self._finish if strike is None else lambda: self._suffer(strike)
        if delay > 0:
            service.loop.call_later(delay, finish)
        else:
            finish()

    def released(self) -> None:
        """A fault held this request; its time has come."""
        if self._release is not None:
            release, self._release = self._release, None
            release()

    # The ordinary way.

    def _finish(self) -> None:
        self._send(self._apply())

    def _apply(self) -> Answer:
        """Do the operation; count it."""
        service, operation = self._service, self._operation
        assert operation is not None
        try:
            answer = operation.handler(
                Context(service.state, self._request, service.now(), self._granted, service.config.copies)
            )
        except Refusal as refusal:
            answer = self._error(refusal)
        except Exception:
            _log.exception("%s %s", operation.kind, self._request.target.key)
            answer = self._error(Refusal("InternalError"))
        self._end_write()
        self._count(answer)
        return answer

    def _send(self, answer: Answer) -> None:
        self._connection.respond(self._wire(answer))

    def _wire(self, answer: Answer) -> tuple[bytes, bytes]:
        """(head, body) of an answer."""
        request = self._request
        if request.method == "HEAD":
            answer.head_only, answer.body = True, b""
        common = (
            f"Server: blobfuse-dysk-testing/1.0\r\nDate: {http_date(self._service.now())}\r\n"
            f"x-ms-request-id: {self._request_id}\r\n"
        )
        for name in (b"x-ms-version", b"x-ms-client-request-id"):  # given back as they came
            value = request.header(name)
            if value:
                common += f"{name.decode()}: {value}\r\n"
        return answer.head(common), answer.body

    def _error(self, refusal: Refusal) -> Answer:
        return error_answer(refusal, self._request_id, self._service.now())

    # Counting.

    def _count_and_send(self, answer: Answer) -> None:
        self._count(answer)
        self._send(answer)

    def _count(self, answer: Answer) -> None:
        operation, request = self._operation, self._request
        self._service.statistics.done(
            operation.kind if operation is not None else _UNKNOWN,
            request.target.key,
            operation.access if operation is not None else "",
            answer.status,
            answer.headers.get("x-ms-error-code", ""),
            len(request.body),
            len(answer.body),
        )

    def _data_range(self, operation: Operation) -> tuple[int, int]:
        """(offset, length) for faults and limits; (0, 0) where an operation has none or does not say it."""
        lists = operation.kind == "get_page_ranges"
        try:
            wanted = self._request.range() if operation.access or lists else None
        except Refusal:
            wanted = None  # the operation itself refuses it
        offset, last = wanted if wanted is not None else (0, None)
        if last is None:
            return offset, _WHOLE if lists else 0
        return offset, max(0, last + 1 - offset)

    def _begin_write(self, operation: Operation, offset: int, length: int) -> None:
        request = self._request
        text = request.headers.get(b"x-ms-if-sequence-number-eq", b"")
        epoch = int(text) if text.isdigit() else None
        write = Write(request.target.key, offset, offset + length, epoch, operation.kind == "clear_page")
        self._write = write
        self._service.statistics.begin_write(write, request, self._service.sequence_number(request.target))

    def _end_write(self) -> None:
        if self._write is not None:
            self._service.statistics.end_write(self._write)
            self._write = None

    # Faults.

    def _suffer(self, fault: Fault) -> None:
        self._service.statistics.faults[fault.action] += 1
        getattr(self, f"_fault_{fault.action}")(fault)

    def _hold(self, fault: Fault, then: Callable[[], None]) -> None:
        """Call `then` after the rule's seconds, or when the test releases what is held."""
        self._release = then
        self._service.hold(self, fault.seconds)

    def _fault_answer(self, fault: Fault) -> Answer:
        refusal = Refusal(fault.code or "", status=fault.status)
        if fault.retry_after_s is not None:
            refusal.headers["Retry-After"] = str(fault.retry_after_s)
        return self._error(refusal)

    def _fault_error(self, fault: Fault) -> None:
        answer = self._fault_answer(fault)
        if fault.when == "after":
            self._apply()
            self._send(answer)
        else:
            self._end_write()
            self._count_and_send(answer)

    def _fault_reset(self, fault: Fault) -> None:
        if fault.when == "after":
            self._apply()
        self._end_write()
        self._connection.abandon("reset")

    def _fault_lost(self, fault: Fault) -> None:
        self._apply()
        self._connection.abandon(fault.connection)

    def _fault_blackhole(self, fault: Fault) -> None:
        self._end_write()
        self._connection.abandon("open")

    def _fault_late(self, fault: Fault) -> None:
        self._hold(fault, self._apply_late)
        if fault.status is not None:
            self._send(self._fault_answer(fault))
        else:
            self._connection.abandon(fault.connection)

    def _apply_late(self) -> None:
        statistics = self._service.statistics
        if self._apply().status < 300:
            statistics.held_applied += 1
        else:
            statistics.held_refused += 1

    def _fault_delay(self, fault: Fault) -> None:
        self._hold(fault, self._finish)

    def _fault_stall(self, fault: Fault) -> None:
        whole = b"".join(self._wire(self._apply()))
        half = len(whole) // 2
        self._connection.send([whole[:half]])
        self._hold(fault, lambda: self._connection.respond([whole[half:]]))

    def _fault_short(self, fault: Fault) -> None:
        head, body = self._wire(self._apply())
        self._connection.respond_and_close([head, body[: len(body) // 2]] if body else [head[: len(head) // 2]])

    def _fault_corrupt(self, fault: Fault) -> None:
        if self._operation is not None and self._operation.access == "write":
            self._request.body = _flip(self._request.body)
            self._finish()
            return
        answer = self._apply()
        answer.body = _flip(answer.body)
        self._send(answer)

    def _fault_wrong_etag(self, fault: Fault) -> None:
        answer = self._apply()
        answer.headers["ETag"] = '"0x8D0BADBADBADBAD"'
        self._send(answer)


def _flip(data: bytes) -> bytes:
    """One bit in the middle changed."""
    damaged = bytearray(data)
    if damaged:
        damaged[len(damaged) // 2] ^= 0x10
    return bytes(damaged)
