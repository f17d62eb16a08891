"""One request of the data port, from arrival to answer.

Arrival: which operation, who asks, which fault strikes, how long it takes (latency and tier). Then, at once or
after that time, `finish` applies it and answers; a fault (actions.py) does something else instead. Applying is one
synchronous step: whatever overlaps in time is applied in the order in which these steps happen. What is refused on
arrival meets faults, too: what stands between client and service does not know that it will be refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from .actions import ACTIONS
from .answers import Answer, Refusal, error_answer, http_date
from .auth import authorize
from .context import Context
from .faults import Fault
from .operations import Operation, choose
from .request import Request
from .statistics import Write
from .support import check_support

if TYPE_CHECKING:
    from .protocol import DataConnection
    from .service import Service

__all__ = ["Exchange"]

_log = logging.getLogger(__name__)
_UNKNOWN = "unknown"
_WHOLE = 8 << 40  # bytes: a page list to the end of the blob


class Exchange:
    """`start` is called once; everything else follows from it. What has no underscore is for actions.py."""

    __slots__ = (
        "_granted",
        "_refused",
        "_release",
        "_request_id",
        "_write",
        "connection",
        "operation",
        "request",
        "service",
    )

    def __init__(self, service: Service, connection: DataConnection, request: Request) -> None:
        self.service = service
        self.connection = connection
        self.request = request
        self.operation: Operation | None = None
        self._request_id = service.next_request_id()
        self._granted = ""
        self._refused: Refusal | None = None
        self._write: Write | None = None
        self._release: Callable[[], None] | None = None

    def start(self) -> None:
        """The request has arrived whole."""
        service, request = self.service, self.request
        delay = 0.0
        try:
            operation = self.operation = choose(request)
        except Refusal as refusal:
            self.count_and_send(self.error(refusal))
            return
        offset, length = self._data_range(operation)
        try:
            self._granted = authorize(
                service.config, service.state, request, operation.permissions, operation.resource_type, service.now()
            )
            check_support(operation.kind, request)
            delay = service.draw_latency()
            if operation.access and (rates := service.rates_for(request.target)) is not None:
                delay += service.admit(request.target.key, length, rates)
        except Refusal as refusal:
            self._refused, delay = refusal, 0.0
        if operation.access == "write" and self._refused is None:
            self._begin_write(operation, offset, length)
        strike = service.faults.strike(operation, request.target, offset, length) if service.faults.active else None
        finish = self.finish if strike is None else lambda: self._suffer(strike)
        if delay > 0:
            service.loop.call_later(delay, finish)
        else:
            finish()

    def _suffer(self, fault: Fault) -> None:
        self.service.statistics.faults[fault.action] += 1
        ACTIONS[fault.action](self, fault)

    def hold(self, fault: Fault, then: Callable[[], None]) -> None:
        """Call `then` after the rule's seconds, or when the test releases what is held."""
        self._release = then
        self.service.hold(self, fault.seconds)

    def released(self) -> None:
        """A fault held this request; its time has come."""
        if self._release is not None:
            release, self._release = self._release, None
            release()

    # The ordinary way.

    def finish(self) -> None:
        self.send(self.apply())

    def apply(self) -> Answer:
        """Do the operation; count it."""
        service, operation = self.service, self.operation
        assert operation is not None
        try:
            if self._refused is not None:
                raise self._refused
            answer = operation.handler(
                Context(service.state, self.request, service.now(), self._granted, service.config)
            )
        except Refusal as refusal:
            answer = self.error(refusal)
        except Exception:
            _log.exception("%s %s", operation.kind, self.request.target.key)
            answer = self.error(Refusal("InternalError"))
        self.end_write()
        self._count(answer)
        return answer

    def send(self, answer: Answer) -> None:
        self.connection.respond(self.wire(answer))

    def wire(self, answer: Answer) -> tuple[bytes, bytes]:
        """(head, body) of an answer."""
        request = self.request
        if request.method == "HEAD":
            answer.head_only, answer.body = True, b""
        common = (
            f"Server: blobfuse-dysk-testing/1.0\r\nDate: {http_date(self.service.now())}\r\n"
            f"x-ms-request-id: {self._request_id}\r\n"
        )
        for name in (b"x-ms-version", b"x-ms-client-request-id"):  # given back as they came
            value = request.header(name)
            if value:
                common += f"{name.decode()}: {value}\r\n"
        return answer.head(common), answer.body

    def error(self, refusal: Refusal) -> Answer:
        return error_answer(refusal, self._request_id, self.service.now())

    # Counting.

    def count_and_send(self, answer: Answer) -> None:
        self._count(answer)
        self.send(answer)

    def _count(self, answer: Answer) -> None:
        operation, request = self.operation, self.request
        self.service.statistics.done(
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
            wanted = self.request.range() if operation.access or lists else None
        except Refusal:
            wanted = None  # the operation itself refuses it
        offset, last = wanted if wanted is not None else (0, None)
        if last is None:
            return offset, _WHOLE if lists else 0
        return offset, max(0, last + 1 - offset)

    def _begin_write(self, operation: Operation, offset: int, length: int) -> None:
        request = self.request
        text = request.headers.get(b"x-ms-if-sequence-number-eq", b"")
        epoch = int(text) if text.isdigit() else None
        write = Write(request.target.key, offset, offset + length, epoch, operation.kind == "clear_page")
        self._write = write
        self.service.statistics.begin_write(write, request, self.service.sequence_number(request.target))

    def end_write(self) -> None:
        if self._write is not None:
            self.service.statistics.end_write(self._write)
            self._write = None
