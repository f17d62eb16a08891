"""The data port: an HTTP connection whose requests are Blob service requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .exchange import Exchange
from .http import Headers, HttpConnection
from .request import Request, parse_target
from .service import Service

__all__ = ["DataConnection"]


class DataConnection(HttpConnection):
    """Known to the service, so that an outage reaches every connection."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service
        self._secure = False
        self._silent = False
        self._outbox: list[bytes] = []
        self._idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._secure = transport.get_extra_info("ssl_object") is not None
        self._service.connected(self)
        self._start_idle_timer()

    def connection_lost(self, error: Exception | None) -> None:
        self._service.disconnected(self)
        self._stop_idle_timer()

    def handle(self, method: str, target: str, headers: Headers, body: bytes) -> None:
        self._stop_idle_timer()
        service = self._service
        parsed = parse_target(target, service.account_of_host(headers.get(b"host", b"")))
        Exchange(service, self, Request(method, parsed, headers, body, self.client_ip, self._secure)).start()

    def respond(self, parts: Sequence[bytes]) -> None:
        super().respond(parts)
        if not self.busy:
            self._start_idle_timer()

    def send(self, parts: Sequence[bytes]) -> None:
        if self._silent:
            self._outbox.extend(parts)
        else:
            super().send(parts)

    def go_silent(self) -> None:
        """A network outage: nothing is read, nothing leaves."""
        self._silent = True
        self.transport.pause_reading()

    def go_on(self) -> None:
        """The outage is over: what was due leaves now."""
        self._silent = False
        parts, self._outbox = self._outbox, []
        if parts:
            self.send(parts)
        self.read_on()

    def read_on(self) -> None:
        if not self._silent:
            super().read_on()

    def _start_idle_timer(self) -> None:
        seconds = self._service.config.idle_timeout_s
        if seconds is not None:
            self._stop_idle_timer()
            self._idle_timer = asyncio.get_running_loop().call_later(seconds, self.transport.close)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
