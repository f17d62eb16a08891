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
        self.dead = False
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
        if not self.busy and not self.dead:
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

    def die(self) -> None:
        """What a NAT or load balancer does that forgets a connection: from now on all that is sent on it is lost.

        Neither side is told, so the client believes in it until it has waited for an answer in vain.
        """
        self.dead = True
        self._service.statistics.forgotten += 1
        self._stop_idle_timer()
        self.go_silent()

    def go_on(self) -> None:
        """The outage is over: what was due leaves now."""
        if self.dead:
            return
        self._silent = False
        parts, self._outbox = self._outbox, []
        if parts:
            self.send(parts)
        self.read_on()

    def read_on(self) -> None:
        if not self._silent:
            super().read_on()

    def _start_idle_timer(self) -> None:
        config = self._service.config
        if config.idle_timeout_s is None and config.idle_death_s is None:
            return
        self._stop_idle_timer()
        seconds, end = config.idle_timeout_s, self.transport.close
        if config.idle_death_s is not None and (seconds is None or config.idle_death_s < seconds):
            seconds, end = config.idle_death_s, self.die
        assert seconds is not None
        self._idle_timer = asyncio.get_running_loop().call_later(seconds, end)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
