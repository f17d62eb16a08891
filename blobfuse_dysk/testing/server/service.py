"""The server as a whole: what it stores, how it behaves now, its listening sockets and connections."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import random
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .config import LIVE, Config, parse_keys, parse_tokens
from .faults import Faults
from .latency import parse_latency
from .request import Target
from .state import State
from .statistics import Statistics
from .throttle import Limiter, parse_tier
from .tiers import rates_of

if TYPE_CHECKING:
    from .protocol import DataConnection

__all__ = ["Service"]


class _Held(Protocol):
    def released(self) -> None:
        """Go on."""


class Service:
    """Everything but HTTP. All methods run in the event loop's thread."""

    def __init__(self, config: Config, new_connection: Callable[[Service], DataConnection]) -> None:
        """Raises ValueError for a malformed latency or tier."""
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.state = State(list(config.accounts), Path(config.directory) if config.directory else None)
        self.statistics = Statistics()
        self._random = random.Random(config.seed)
        self.faults = Faults(self._random)
        self.draw_latency = parse_latency(config.latency, self._random)
        self.rates = parse_tier(config.tier) if config.tier else None
        self.outage: str | None = None
        self._limiters: dict[str, Limiter] = {}
        self._held: dict[_Held, asyncio.TimerHandle | None] = {}
        self._request_numbers = itertools.count(1)
        self._hosts: dict[bytes, str] = {}
        self._new_connection = new_connection
        self._connections: set[DataConnection] = set()
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._ssl: ssl.SSLContext | None = None
        if config.cert_file:
            self._ssl = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._ssl.load_cert_chain(config.cert_file, config.key_file)

    # Listening.

    async def listen(self) -> int:
        """Open the data port; returns its number."""
        config = self.config
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        self._socket = socket.create_server((config.host, config.port), family=family, backlog=1024)
        config.port = int(self._socket.getsockname()[1])
        await self._accept()
        return config.port

    async def set_outage(self, kind: str | None) -> None:
        """None: over. "silent": connections hang, new ones are not accepted. "refuse": all are reset and refused."""
        if kind not in (None, "silent", "refuse"):
            raise ValueError(f"outage is {kind!r}, not silent, refuse or null")
        await self._end_outage()
        if kind is None:
            return
        assert self._server is not None and self._socket is not None
        self.outage = kind
        self._server.close()
        self._server = None
        if kind == "silent":
            # The listening socket itself stays open: the kernel completes handshakes, as on a machine whose service
            # hangs.
            for connection in self._connections:
                connection.go_silent()
        else:
            self._socket.close()
            for connection in list(self._connections):
                connection.reset()

    def forget_connections(self) -> int:
        """Let every connection that is open now die without a word; new ones are served. Returns how many."""
        alive = [connection for connection in self._connections if not connection.dead]
        for connection in alive:
            connection.die()
        return len(alive)

    async def _end_outage(self) -> None:
        ended, self.outage = self.outage, None
        for connection in self._connections if ended == "silent" else ():
            connection.go_on()
        if ended == "refuse":
            await self.listen()
        elif ended == "silent":
            await self._accept()

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        for connection in list(self._connections):
            connection.reset()
        self.state.save(self.now())

    async def _accept(self) -> None:
        assert self._socket is not None
        self._server = await self.loop.create_server(
            lambda: self._new_connection(self), sock=self._socket.dup(), ssl=self._ssl, backlog=1024
        )

    def connected(self, connection: DataConnection) -> None:
        """A connection was opened."""
        self._connections.add(connection)
        self.statistics.connections += 1
        if self.outage == "refuse":  # its TLS handshake was under way when the outage began
            connection.reset()

    def disconnected(self, connection: DataConnection) -> None:
        """A connection was closed by either side."""
        self._connections.discard(connection)

    # What requests ask for.

    def now(self) -> float:
        """The service's clock, seconds since the epoch."""
        return time.time() + self.config.clock_offset_s

    def next_request_id(self) -> str:
        """A GUID-shaped number."""
        return f"d15c0000-0000-4000-8000-{next(self._request_numbers):012x}"

    def account_of_host(self, host: bytes) -> str:
        """The account in a Host header such as `ACCOUNT.blob.core.windows.net`; empty when the path has it."""
        found = self._hosts.get(host)
        if found is None:
            name = host.decode("latin-1").rpartition(":")[0] or host.decode("latin-1")
            first, dot, _ = name.partition(".")
            found = first if dot and not _is_address(name) else ""
            self._hosts[host] = found
        return found

    def sequence_number(self, target: Target) -> int:
        """Of the blob named, 0 if there is none."""
        container = self.state.accounts[target.account].get(target.container)
        blob = container.blobs.get(target.blob) if container is not None else None
        return blob.sequence_number if blob is not None else 0

    def rates_for(self, target: Target) -> tuple[float, float] | None:
        """(operations, bytes) per second of data requests to a blob: the server's tier, else the blob's own."""
        if self.rates is not None or not self.config.sku.startswith("Premium_"):
            return self.rates
        container = self.state.accounts[target.account].get(target.container)
        blob = container.blobs.get(target.blob) if container is not None else None
        return rates_of(self.config, blob) if blob is not None else None

    def admit(self, key: str, length: int, rates: tuple[float, float]) -> float:
        """Seconds that a tier's limits make a data request wait; Refusal ServerBusy when it may not wait."""
        limiter = self._limiters.setdefault(key, Limiter())
        return limiter.admit(length, rates, self.loop.time(), self.config.throttle == "503")

    def hold(self, held: _Held, seconds: float | None) -> None:
        """Call `held.released()` after `seconds`, or (None) when the test says so."""
        self._held[held] = None if seconds is None else self.loop.call_later(seconds, self._release, held)

    def release(self) -> int:
        """Let go of everything that is held; returns how many."""
        held = list(self._held)
        for each in held:
            self._release(each)
        return len(held)

    @property
    def held_count(self) -> int:
        """Requests that a fault holds now."""
        return len(self._held)

    def _release(self, held: _Held) -> None:
        timer = self._held.pop(held)
        if timer is not None:
            timer.cancel()
        held.released()

    # What the control port asks for.

    def configure(self, changes: dict[str, Any]) -> None:
        """Change settings while running; all of them or, with a ValueError, none."""
        unknown = set(changes) - LIVE
        if unknown:
            raise ValueError(f"option {sorted(unknown)[0]!r} cannot be changed while running")
        values = dict(changes)
        if "accounts" in values:
            values["accounts"] = parse_keys(values["accounts"])
        if "tokens" in values:
            values["tokens"] = parse_tokens(values["tokens"])
        if values.get("throttle", "503") not in ("503", "delay"):
            raise ValueError(f"throttle is {values['throttle']!r}, not 503 or delay")
        if values.get("copies", "success") not in ("success", "pending"):
            raise ValueError(f"copies is {values['copies']!r}, not success or pending")
        latency = parse_latency(str(values.get("latency", self.config.latency)), self._random)
        tier = values.get("tier", self.config.tier)
        rates = parse_tier(tier) if tier else None
        for name, value in values.items():
            setattr(self.config, name, value)
        self.draw_latency, self.rates = latency, rates
        for account in self.config.accounts:
            self.state.accounts.setdefault(account, {})


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
